"""A peer that learns, within one process and without Ray: its model, its guard and the stages it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_l4.learner.peer_model import PeerModel
from ray_l4.learner.stage_run import StageRun

if TYPE_CHECKING:
    import pyarrow as pa


class Learner(PeerModel):
    """Owns what outlasts a stage: the weights and the guard. ``begin_stage`` returns the owner of all other state."""

    def begin_stage(self, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> StageRun:
        """Begin to learn ``tokens`` (current and replayed examples) with a fresh optimiser and schedule.

        ``memory``: stored examples of earlier tasks, for a guard that looks at them. Stage runs returned earlier
        must no longer be used. Source: REFERENCE.md#adamw.
        """
        return StageRun(self, stage, tokens, memory)
