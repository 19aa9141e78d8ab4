"""One peer in one process: its model, its guard, and the stages it learns. It knows nothing of Ray or of its peers."""

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
    """What outlasts a stage: the weights, and what the guard knows. ``begin_stage`` returns the owner of the rest."""

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
        """Arguments as for ``PeerModel``; the method names the guard."""
        super().__init__(peer, model, tokenizer, experiment, method, sharding, micro_batch)
        self.guard: Guard | None = build_guard(method.guard)

    def begin_stage(self, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> StageRun:
        """Start to learn ``tokens`` (current and replayed examples) with a fresh optimiser and schedule.

        ``memory``: stored examples of earlier tasks, for a guard that projects gradients against them. A stage that
        was begun before is void. Source: REFERENCE.md#adamw.
        """
        return StageRun(self, self.guard, stage, tokens, memory)
