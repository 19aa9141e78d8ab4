"""The state of a run: stages done, restarts, wall time, peak memory, and lost students."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ray_l4.run.context import RunContext


class StateKeeper:
    """Owns ``state.json`` while the run goes on."""

    def __init__(self, context: RunContext, earlier_seconds: float = 0.0) -> None:
        """``earlier_seconds``: wall time of the teachers' training, which counts as part of this run."""
        self._context = context
        self._state = context.directory.state()
        if not self._state.wall_seconds:
            self._state = self._state.model_copy(update={"wall_seconds": earlier_seconds})
        self._counted_until = time.monotonic()

    @property
    def stages_done(self) -> int:
        """Number of stages that are completely on disk."""
        return self._state.stages_done

    def count_restart(self) -> None:
        """Count a restart of the current stage; the next ``commit`` writes it."""
        self._state = self._state.model_copy(update={"restarts": self._state.restarts + 1})

    def record_lost(self, lost: Mapping[int, str]) -> None:
        """Write which students are lost within a stage, if that has changed. ``lost``: student -> how it was lost."""
        if not lost.keys() <= self._state.lost_students.keys():
            update = {"lost_students": self._state.lost_students | dict(lost)}
            self._state = self._state.model_copy(update=update)
            self._context.directory.save_state(self._state)

    def commit(self, stages_done: int, memory: Mapping[str, int], lost: Mapping[int, str]) -> None:
        """Write that ``stages_done`` stages are done, once all their other files are on disk.

        ``memory``: worker -> its peak memory in bytes. ``lost``: lost student -> how it was lost.
        """
        peaks = dict(self._state.peak_memory_bytes)
        peaks |= {name: max(peak, peaks.get(name, 0)) for name, peak in memory.items()}
        now = time.monotonic()
        wall, self._counted_until = self._state.wall_seconds + now - self._counted_until, now
        update = {
            "stages_done": stages_done,
            "wall_seconds": wall,
            "peak_memory_bytes": peaks,
            "lost_students": self._state.lost_students | dict(lost),
        }
        self._state = self._state.model_copy(update=update)
        self._context.timeline.save()
        self._context.directory.save_state(self._state)
        self._context.mirroring.push()
