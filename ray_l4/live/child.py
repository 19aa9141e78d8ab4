"""The command that learns beside a live service: a process of its own, which ends with the service in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ray_l4.config.supervised import SUPERVISED

_NICE = 10
"""Priority of learning: answers go first where both need the same core."""
_TAIL = 8000
"""Bytes at the end of a command's output in which its error is looked for."""
_MARK = "error: "


class Child:
    """A ``ray-l4`` command, whose output is appended to a file."""

    def __init__(self, arguments: Sequence[str], output: Path, limit: float) -> None:
        """Start it. ``limit``: seconds without a sign of life after which it is killed."""
        self.arguments = tuple(arguments)
        self._output, self._limit = output, limit
        self._heard = time.monotonic()
        output.parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        try:
            with output.open("ab") as file:
                self._process = subprocess.Popen(
                    ["nice", "-n", str(_NICE), sys.executable, "-m", "ray_l4.cli", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {SUPERVISED: f"{writing}:{os.getpid()}"},
                    pass_fds=[writing],
                    process_group=0,  # Ctrl-C at the terminal of the service reaches it once, from the service
                )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        os.set_blocking(reading, False)
        self._signs = reading
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code once it has ended, as shells report it. One that has fallen silent is killed."""
        code = self._process.poll()
        try:
            if os.read(self._signs, 2**16):
                self._heard = time.monotonic()
        except BlockingIOError:  # nothing was said since the last look
            pass
        if code is None and time.monotonic() - self._heard > self._limit:
            self.kill()
            code = self._process.wait()
        return 128 - code if code is not None and code < 0 else code

    def stop(self, seconds: float) -> None:
        """Ask it to stop, wait for so long, and then kill it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                self._process.wait()

    def kill(self) -> None:
        """Kill it; what belongs to its Ray session ends by itself."""
        self._process.kill()

    def close(self) -> None:
        """Close its pipe, once it has ended."""
        os.close(self._signs)

    def error(self) -> str:
        """Return the error that its output ends with; the last line if there is none."""
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
        said = next((line for line in reversed(lines) if line.startswith(_MARK)), lines[-1] if lines else "no output")
        return said.removeprefix(_MARK)
