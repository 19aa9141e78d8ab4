"""The command of a run as a person would use it: typed, and ``resume`` typed again when it has ended early."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from analysis.faults.injection import send
from analysis.faults.processes import MARK, children_of
from analysis.faults.subjects import environment

_MOST_COMMANDS = 8
_LAST_LINES = 6


class GivenUpError(Exception):
    """The run has needed too many commands."""


class Command:
    """``ray-l4 run`` or ``ray-l4 resume``, whichever is due, under a supervisor if the run has Ray to itself."""

    def __init__(self, files: tuple[Path, Path], mark: str, *, supervised: bool) -> None:
        """``files``: the experiment and the profile. ``mark``: what the processes are recognised by."""
        self._files, self._mark, self._supervised = files, mark, supervised
        self.run = files[0].parent / "run"
        self.output = files[0].parent / "output.txt"
        self.typed = 0
        """Commands so far."""
        self.began = 0.0
        """Monotonic time at which the newest was typed."""
        self._process: subprocess.Popen[bytes] | None = None

    def type(self) -> None:
        """Type the command that is due. Raises GivenUpError after too many."""
        if self.typed >= _MOST_COMMANDS:
            raise GivenUpError(f"{self.typed} commands were not enough")
        experiment, profile = self._files
        words: list[str | Path] = ["run", experiment, "--cluster", profile, "--run-dir", self.run]
        if (self.run / "config.yaml").is_file():
            words = ["resume", self.run]
        words += ["--supervise"] if self._supervised else []
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ray_l4.cli", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment({MARK: self._mark}),
            )
        self.typed += 1
        self.began = time.monotonic()

    @property
    def pid(self) -> int:
        """Process of the newest command."""
        assert self._process is not None, "nothing has been typed"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of the newest command; None while it runs."""
        assert self._process is not None, "nothing has been typed"
        return self._process.poll()

    def driver(self) -> int | None:
        """Return the process that uses Ray: the newest child of the supervisor, or the command itself; None if it is
        not there."""
        if self._supervised:
            return next(reversed(children_of(self.pid)), None)
        return self.pid if self.exit_code is None else None

    def last_words(self) -> str:
        """Return the last lines that were printed."""
        lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:])

    def kill(self) -> None:
        """End the command if it runs."""
        if self._process is not None and self._process.poll() is None:
            send(self._process.pid, signal.SIGKILL)
            self._process.wait()
