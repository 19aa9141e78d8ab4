"""How often something that dies is started again: any number of times while the run makes progress, a few without."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from ray_l4.errors import RayL4Error

_LONGEST_WAIT = 60.0
"""Seconds before any restart at most."""


class RestartsSpentError(RayL4Error):
    """Something died again and again without any progress in between."""

    exit_code = 7


class RestartBudget:
    """Restarts that are left. The first one after new progress is immediate; the wait then doubles every time."""

    def __init__(self, most: int, backoff: float) -> None:
        """``most``: restarts without progress. ``backoff``: seconds before the second of them."""
        self._most = most
        self._backoff = backoff
        self._seen: set[Hashable] = set()
        self._spent = 0

    def spend(self, progress: Hashable) -> float:
        """Return the seconds to wait before the restart that is due now.

        ``progress`` says how far the run is: a value not seen before gives back the whole budget. Raises
        RestartsSpentError if the budget is used up.
        """
        if progress not in self._seen:
            self._seen.add(progress)
            self._spent = 0
        if self._spent >= self._most:
            raise RestartsSpentError(f"no progress after {self._spent} restarts (restarts.most in the cluster profile)")
        self._spent += 1
        exponent = min(self._spent - 2, 32)
        return 0.0 if exponent < 0 else min(self._backoff * 2.0**exponent, _LONGEST_WAIT)


def progress_on_disk(run: Path) -> Hashable:
    """Return which results of the run, and of its teachers, are on disk: files that a repeated stage writes again.

    Logs, curves and the timeline grow without progress and do not count, nor do temporary files, whose names begin with
    a dot.
    """
    results = ("states/*/position.json", "checkpoints/*/*/*", "replay/*", "replay/*/*", "distil/*", "scores/*.json")
    found = {
        path.relative_to(run)
        for folder in (run, run / "teachers")
        for result in (*results, "guards/*.safetensors")
        for path in folder.glob(result)
    }
    return frozenset(path for path in found if not any(part.startswith(".") for part in path.parts))
