"""In which phases a run is just now, whom a fault may befall, and which moment of a phase is chosen."""

from __future__ import annotations

import random
import time
from contextlib import suppress

from analysis.faults.command import Command
from analysis.faults.fault import Fault
from analysis.faults.processes import Processes
from analysis.faults.subjects import Nodes

_CALLS = {
    "forward": ("Student.forward", "Student.advance"),
    "backward": ("Student.backward", "Student.advance"),
    "checkpoint": ("Student.weights", "Student.state"),
    "replay": ("Evaluator.replay",),
    "scoring": ("Evaluator.answer", "Evaluator.score"),
}
"""What actors do in a phase."""
_LONGEST_DELAY = {"start": 2.0, "resume": 2.0, "forward": 1.0, "exchange": 1.0, "backward": 1.0, "scoring": 1.0}
"""Seconds from the first moment at which a fault is possible to the last that is tried."""
_SHORT_DELAY = 0.15
"""The same in phases that last for tenths of a second."""


class Moments:
    """What is going on, seen from outside."""

    def __init__(self, command: Command, processes: Processes, nodes: Nodes | None, generator: random.Random) -> None:
        self._command, self._processes, self._nodes, self._random = command, processes, nodes, generator
        self._drivers: list[int] = []

    def look(self) -> None:
        """Look at all processes."""
        self._processes.poll()
        driver = self._command.driver()
        if driver is not None and driver not in self._drivers:
            self._drivers.append(driver)

    def victims(self, fault: Fault) -> list[int]:
        """Return the processes that the fault may befall now, if the run is in its phase; none if it is not."""
        return self._processes_of(fault.whom) if self._is_in(fault.phase, fault.whom) else []

    def delay(self, phase: str) -> float:
        """Return how many seconds to wait in a phase, so that not only its first moments are tried."""
        return self._random.uniform(0.0, _LONGEST_DELAY.get(phase, _SHORT_DELAY))

    def _processes_of(self, whom: str) -> list[int]:
        driver = self._command.driver()
        if whom == "command":
            return [] if self._command.exit_code is not None else [self._command.pid]
        if driver is None:
            return []
        if whom == "driver":
            return [driver]
        if whom == "node":
            return self._nodes.with_raylet(self._processes.of_kind("raylet")) if self._nodes else []
        since = None if self._nodes else driver  # those of an earlier session may not have ended yet
        return self._processes.of_kind(whom, since)

    def _is_in(self, phase: str, whom: str) -> bool:
        doing, driver = self._processes.doing, self._drivers[-1] if self._drivers else None
        if phase in ("start", "resume"):  # an evaluator starts while the students learn already
            worker = "evaluator" if whom == "evaluator" else "student"
            return not self._processes.last_work(worker, driver) and (phase == "start") == (len(self._drivers) <= 1)
        if phase == "exchange":  # one waits for the predictions of the other
            return 0 < len(doing("Student.backward", "Student.advance")) < len(self._processes.of_kind("student"))
        if phase == "transition":  # a stage is committed, and the next one is not yet learned
            trained = self._processes.last_work("student", driver)
            with suppress(OSError):
                committed = (self._command.run / "state.json").stat().st_mtime
                return trained > 0.0 and committed > time.time() - (time.monotonic() - trained)
            return False
        return bool(doing(*_CALLS[phase]))
