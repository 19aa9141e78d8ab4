"""A command that runs beside its test, until the test stops it, and all processes that descend from it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tests.cli.cli_fixtures import command

START_LIMIT = 200.0
"""Seconds for a command to get to the point at which a test stops it."""
END_LIMIT = 150.0
"""Seconds for all processes to end: Ray's own notice the death of the command slowly on a busy machine."""
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's processes that try to reach their dead cluster for a minute before they end."""

_MARK = "RAY_L4_TEST_MARK"


class BackgroundCommand:
    """A started command. Its descendants are recognised by a mark in their environment."""

    def __init__(self, mark: str, *arguments: object) -> None:
        self._mark = mark
        self.process = subprocess.Popen(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {_MARK: mark},
            start_new_session=True,
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds. Fails if the command ends before, or after ``START_LIMIT``."""
        deadline = time.monotonic() + START_LIMIT
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the command did not get to where it was to be stopped"
            time.sleep(0.1)

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Send a signal to the command, or to its whole process group as a terminal does."""
        (os.killpg if to_group else os.kill)(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the command to end; return its exit code and what it printed to stdout and stderr."""
        output, errors = self.process.communicate(timeout=END_LIMIT)
        return self.process.returncode, output, errors

    def left(self, ignored: Collection[str] = ()) -> list[int]:
        """Return the processes that carry the mark, except those with an ignored name."""
        return [
            int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._owns(entry, ignored)
        ]

    def _owns(self, entry: Path, ignored: Collection[str]) -> bool:
        try:
            marked = f"{_MARK}={self._mark}\0".encode() in (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            title = (entry / "cmdline").read_bytes().partition(b"\0")[0].decode().strip()
        except OSError:  # the process has just ended
            return False
        return marked and state != "Z" and title not in ignored

    def wait_until_gone(self, ignored: Collection[str] = ()) -> list[int]:
        """Wait until no process is left, except ignored ones; return those that are left after ``END_LIMIT``."""
        deadline = time.monotonic() + END_LIMIT
        while self.left(ignored) and time.monotonic() < deadline:
            time.sleep(0.2)
        return self.left(ignored)
