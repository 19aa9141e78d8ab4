"""A peer that learns, within one process and without Ray: its model, its guard and the stages it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_l4.learner.guards import Guard, build_guard
from ray_l4.learner.peer_model import PeerModel
from ray_l4.learner.sharding import ALONE, Sharding
from ray_l4.learner.stage_run import StageRun

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel

    from ray_l4.config.experiment import ExperimentConfig
    from ray_l4.methods import Method
    from ray_l4.text.tokenizer import TaskTokenizer


class Learner(PeerModel):
    """Owns what outlasts a stage: the weights and the guard. ``begin_stage`` returns the owner of all other state."""

    def __init__(
        self,
        peer: int,
        model: PreTrainedModel,
        tokenizer: TaskTokenizer,
        experiment: ExperimentConfig,
        method: Method,
        sharding: Sharding = ALONE,
        micro_batch: int | None = None,
    ) -> None:
        """Take the arguments of ``PeerModel``; the guard is the method's."""
        super().__init__(peer, model, tokenizer, experiment, method, sharding, micro_batch)
        self.guard: Guard | None = build_guard(method.guard)

    def begin_stage(self, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> StageRun:
        """Begin to learn ``tokens`` (current and replayed examples) with a fresh optimiser and schedule.

        ``memory``: stored examples of earlier tasks, for a guard that projects gradients against them. Stage runs
        returned earlier must no longer be used. Source: REFERENCE.md#adamw.
        """
        return StageRun(self, self.guard, stage, tokens, memory)
