"""Looks at a run all the time, and types ``resume`` when its command has ended early."""

from __future__ import annotations

import time
from collections.abc import Callable

from analysis.faults.command import Command
from analysis.faults.moments import Moments

PAUSE, LONG_PAUSE = 0.002, 0.02
"""Seconds between two looks: at what actors do, and at what is on disk."""


class Watching:
    """The person at the terminal."""

    def __init__(self, command: Command, moments: Moments, on_exit: Callable[[int], None]) -> None:
        """``on_exit`` is called with the exit code of a command that ended early, before ``resume`` is typed."""
        self._command, self._moments, self._on_exit = command, moments, on_exit

    def until(self, condition: Callable[[], bool], limit: float, pause: float = PAUSE) -> bool:
        """Look until ``condition``; False after ``limit`` seconds, or if the run is finished before.

        Raises GivenUpError if too many commands were typed.
        """
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            self._moments.look()
            code = self._command.exit_code
            if code == 0:
                return False
            if code is not None:
                self._on_exit(code)
                self._command.type()
            if condition():
                return True
            time.sleep(pause)
        return False

    def end(self, limit: float) -> bool:
        """Return whether the run is finished within ``limit`` seconds."""
        return self.until(lambda: self._command.exit_code == 0, limit) or self._command.exit_code == 0

    def wait(self, seconds: float) -> None:
        """Look for some seconds, whatever the command does."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._moments.look()
            time.sleep(PAUSE)
