"""The steps of a stage: the examples of each, the weights of their labels, and one rank's share of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ray_l4.learner.micro_batches import MicroBatch, split
from ray_l4.learner.predictions import NOTHING, ComputedLogits, Predictions
from ray_l4.losses.label_weights import label_weights
from ray_l4.losses.objective import Denominators
from ray_l4.text.batches import build_batch
from ray_l4.text.heads import Head
from ray_l4.text.sampler import Sampler
from ray_l4.text.tokens import sequence_lengths

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_l4.learner.head_outputs import HeadOutputs
    from ray_l4.learner.peer_model import PeerModel


def _nothing() -> None:
    return None


@dataclass
class Step:
    """One rank's state of a step between ``forward`` and ``backward``."""

    number: int
    micro_batches: Sequence[MicroBatch]
    """The rank's share of the batch: one micro-batch unless the profile limits their size."""
    denominators: Mapping[Head, Denominators]
    """Those of the whole step, over all micro-batches and ranks, as are the two counts below."""
    num_examples: int
    num_tokens: int
    outputs: Mapping[Head, HeadOutputs] | None = None
    """Outputs of the only micro-batch, with their graph. None if there are several: keeping all their graphs would take
    the memory that splitting saves, so ``backward`` runs them again."""
    published: Predictions = NOTHING
    """Those of the only micro-batch, if any were asked for."""
    lent: Callable[[], ComputedLogits | None] = _nothing
    """Returns the logits that expire with the update, unless everybody is done with them: nothing is kept for that."""


class Steps:
    """Builds the steps of one stage."""

    def __init__(self, learner: PeerModel, stage: int, tokens: pa.Table) -> None:
        self._learner = learner
        self._stage = stage
        self._tokens = tokens
        self._samplers: dict[int, Sampler] = {}

    def sampler_of(self, student: int) -> Sampler:
        """Return the sampler of ``student``: the same for all students, unless they learn in turn."""
        experiment = self._learner.experiment.at_stage(self._stage)
        in_turn = experiment.distillation.schedule == "alternate_epochs"
        key = student if in_turn else 0
        if key not in self._samplers:
            training = experiment.training
            self._samplers[key] = Sampler(
                sequence_lengths(self._tokens),
                experiment.seed,
                self._stage,
                training.epochs,
                training.batch_size,
                training.batch_budget,
                order=(student,) if in_turn else (),
            )
        return self._samplers[key]

    def step(self, number: int, student: int) -> Step:
        """Build a step of ``student``: weight the labels of the whole batch, split it, and move it to the device."""
        learner = self._learner
        training = learner.experiment.training
        distil_all = learner.experiment.distillation.examples == "all"
        indices = self.sampler_of(student).indices(number)
        batch = build_batch(
            self._tokens, indices, learner.method.heads, learner.tokenizer, training.answer_token_weight
        )
        replay_in_batch = batch.num_current_examples < batch.num_examples
        current = learner.method.uses_labels(self._stage, replay_in_batch=replay_in_batch)
        heads, denominators = {}, {}
        for head, positions in batch.heads.items():
            weights_N, divisor = label_weights(
                positions.weights_N, positions.num_current, current=current, means=training.means
            )
            heads[head] = replace(positions, weights_N=weights_N)
            distilled = len(positions.targets_N) if distil_all else positions.num_current
            denominators[head] = Denominators(nll=divisor, kd=float(distilled))
        sharding = learner.sharding
        parts = split(
            replace(batch, heads=heads), sharding.rank, sharding.size, learner.micro_batch, distil_all=distil_all
        )
        on_device = [part.to(learner.device) for part in parts]
        return Step(number, on_device, denominators, batch.num_examples, batch.num_tokens)
