"""When a run has recovered from a fault: a result is on disk that has never been there before."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from analysis.faults.fault import Fault
from analysis.faults.processes import Processes, kind_of

_PATTERNS = (
    "states/*/position.json",
    "checkpoints/*/*/*/model.safetensors",
    "replay/*.parquet",
    "replay/*.chunks/*.parquet",
    "scores/*.json",
    "steps/*.parquet",
)
_PREFIXES = {"student": ("states/", "checkpoints/", "steps/"), "evaluator": ("replay/", "scores/")}
"""Whose work which results are; all of them, of anybody else."""
_LOOK_SECONDS = 0.05


class Results:
    """The results of a run that have ever been on disk: states, checkpoints, replay, scores, figures of epochs."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._ever: set[str] = set()
        self._next_look = 0.0

    def look(self) -> set[str]:
        """Return what has come since the last look; nothing if that was just now."""
        now = time.monotonic()
        if now < self._next_look:
            return set()
        self._next_look = now + _LOOK_SECONDS
        found = {str(path.relative_to(self._run)) for pattern in _PATTERNS for path in self._run.glob(pattern)}
        new = {name for name in found - self._ever if "/." not in name}  # under way
        self._ever |= new
        return new

    def all_is_learned(self, stages: int) -> bool:
        """Return whether all stages are committed, so that only scores are missing."""
        with suppress(OSError, ValueError):
            return bool(json.loads((self._run / "state.json").read_bytes())["stages_done"] >= stages)
        return False


class Recovery:
    """Waits for progress after one fault.

    What was under way when a process was lost may still come to the disk. So a new result counts only once there is a
    process in the place of the lost one.
    """

    def __init__(self, fault: Fault, processes: Processes, results: Results, stages: int) -> None:
        self._processes, self._results = processes, results
        self._kind = _REPLACED_WITH.get(fault.whom, fault.whom)
        self._there = self._of_kind()
        trains = not results.all_is_learned(stages)
        self._waits = fault.replaces and (trains or self._kind != "student")
        self._counts = _PREFIXES.get(self._kind, ("",)) if trains or self._kind != "student" else ("",)
        results.look()

    def progress(self) -> str:
        """Return the result that shows that the run goes on; nothing as long as there is none."""
        new = self._results.look()
        if self._waits:
            self._waits = not self.has_replacement()
            return ""
        return min((name for name in new if name.startswith(self._counts)), default="")

    def has_replacement(self) -> bool:
        """Return whether there is a process of the kind that was not there before the fault."""
        return not self._of_kind() <= self._there

    def _of_kind(self) -> set[int]:
        """Return all processes of the kind. An idle process of Ray is none of them, and may become one."""
        return {pid for pid, title in self._processes.titles.items() if kind_of(title) == self._kind}


_REPLACED_WITH = {"node": "student"} | dict.fromkeys(("gcs", "raylet", "command", "driver"), "coordinator")
"""Whose appearance shows that what was lost has been replaced, if not that of its own kind."""
