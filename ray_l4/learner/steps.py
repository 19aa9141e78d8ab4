"""The steps of a stage: which examples each has, what their labels weigh, and what of it one rank runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.micro_batches import Piece, cut
from ray_l4.learner.position_logits import Outputs
from ray_l4.learner.sharding import Sharding
from ray_l4.losses.label_weights import label_weights
from ray_l4.losses.objective import Denominators
from ray_l4.methods import Method
from ray_l4.text.batches import build_batch
from ray_l4.text.sampler import Sampler
from ray_l4.text.tokens import Head, SpecialIds, sequence_lengths


@dataclass
class Step:
    """A step as one rank sees it, between its forward and its backward."""

    number: int
    pieces: Sequence[Piece]
    """What the rank runs, one after the other; a single one unless the profile says otherwise."""
    denominators: Mapping[Head, Denominators]
    """Of the whole step, all pieces and ranks, like the two that follow."""
    num_samples: int
    num_tokens: int
    outputs: Mapping[Head, Outputs] | None = None
    """Of a single piece, with their graph. Several would need the memory they are there to save: each runs again."""


class Steps:
    """The steps of one stage."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        method: Method,
        special: SpecialIds,
        stage: int,
        tokens: pa.Table,
        sharding: Sharding,
        micro_batch: int | None,
    ) -> None:
        self._experiment = experiment
        self._method = method
        self._special = special
        self._stage = stage
        self._tokens = tokens
        self._sharding = sharding
        self._micro_batch = micro_batch
        self._samplers: dict[int, Sampler] = {}

    def sampler_of(self, student: int) -> Sampler:
        """The order in which ``student`` sees the examples: one for all, or its own where students learn in turn."""
        in_turn = self._experiment.distillation.schedule == "alternate_epochs"
        key = student if in_turn else 0
        if key not in self._samplers:
            training = self._experiment.training
            self._samplers[key] = Sampler(
                sequence_lengths(self._tokens),
                self._experiment.seed,
                self._stage,
                training.epochs,
                training.batch_size,
                training.batch_budget,
                order=(student,) if in_turn else (),
            )
        return self._samplers[key]

    def step(self, number: int, student: int, device: torch.device) -> Step:
        """A step of ``student``: labels are weighted for the whole of it, then it is cut, and goes to the device."""
        training = self._experiment.training
        distil_all = self._experiment.distillation.examples == "all"
        indices = self.sampler_of(student).indices(number)
        batch = build_batch(self._tokens, indices, self._method.heads, self._special, training.answer_token_weight)
        current = self._method.uses_labels(self._stage, replay_in_batch=batch.num_current_samples < batch.num_samples)
        heads, denominators = {}, {}
        for head, positions in batch.heads.items():
            weights_N, divisor = label_weights(
                positions.weights_N, positions.num_current, current=current, means=training.means
            )
            heads[head] = replace(positions, weights_N=weights_N)
            distilled = len(positions.targets_N) if distil_all else positions.num_current
            denominators[head] = Denominators(nll=divisor, kd=float(distilled))
        weighted = replace(batch, heads=heads)
        pieces = cut(weighted, self._sharding.rank, self._sharding.size, self._micro_batch, distil_all=distil_all)
        on_device = [piece.to(device) for piece in pieces]
        return Step(number, on_device, denominators, batch.num_samples, batch.num_tokens)
