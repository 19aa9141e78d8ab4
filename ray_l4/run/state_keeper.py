"""The state of a run: how many stages are done, and what they took."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ray_l4.run.context import RunContext


class StateKeeper:
    """Owns the run's ``state.json`` while the run goes on."""

    def __init__(self, context: RunContext, earlier_seconds: float = 0.0) -> None:
        """``earlier_seconds``: wall time of the teachers, if they were trained for this run and not counted yet."""
        self._context = context
        self._state = context.directory.state()
        if not self._state.wall_seconds:
            self._state = self._state.model_copy(update={"wall_seconds": earlier_seconds})
        self._counted_until = time.monotonic()

    @property
    def stages_done(self) -> int:
        """Stages that are on disk as a whole."""
        return self._state.stages_done

    def count_restart(self) -> None:
        """Note that the stage at hand begins again; on disk with the next ``commit``."""
        self._state = self._state.model_copy(update={"restarts": self._state.restarts + 1})

    def commit(self, stages_done: int, memory: Mapping[str, int], lost: Mapping[int, str]) -> None:
        """Write that so many stages are done: everything that they left is on disk.

        ``memory``: peak memory by worker, in bytes. ``lost``: students that are lost, and how.
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
