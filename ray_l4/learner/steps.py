"""The steps of a stage: the examples of each, the weights of their labels, and one rank's share of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_l4.learner.micro_batches import MicroBatch, split
from ray_l4.learner.predictions import NOTHING, ComputedLogits, Predictions
from ray_l4.losses.label_weights import label_weights
from ray_l4.losses.objective import Denominators
from ray_l4.seeds import derive
from ray_l4.text.batches import build_batch
from ray_l4.text.heads import Head
from ray_l4.text.sampler import Sampler
from ray_l4.text.tokens import sequence_lengths

if TYPE_CHECKING:
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
        self._lengths = sequence_lengths(tokens)
        self._is_current = pc.equal(tokens["origin"], "real").to_numpy()
        self._samplers: dict[int, Sampler] = {}

    def sampler_of(self, student: int) -> Sampler:
        """Return the sampler of ``student``: the same for all students, unless each has an order of its own.

        With batches of their own (``distillation.batches``), student 0 has the order of a student that learns alone.
        """
        experiment = self._learner.experiment.at_stage(self._stage)
        in_turn = experiment.distillation.schedule == "alternate_epochs"
        key = student if in_turn or experiment.distillation.batches == "own" else 0
        if key not in self._samplers:
            training, rows = experiment.training, self._subset(key)
            self._samplers[key] = Sampler(
                self._lengths if rows is None else self._lengths[rows],
                experiment.seed,
                self._stage,
                training.epochs,
                training.batch_size,
                training.batch_budget,
                order=(student,) if in_turn or key else (),
                rows=rows,
            )
        return self._samplers[key]

    def step(self, number: int, student: int, answered: pa.Table | None = None) -> Step:
        """Build a step that ``student`` learns: weight the labels of the batch, split it, move it to the device.

        ``answered``: the current examples of the batch with the student's own answers (``current_examples``), which
        then bear the distillation in place of the given answers.
        """
        current = self._is_current[self.sampler_of(student).indices(number)]
        has_labels = self._uses_labels(current) or not current.all()
        heads = self._learner.method.heads if answered is None or has_labels else ()
        return self._step(number, student, heads, answered)

    def asked(self, number: int, student: int, answered: pa.Table | None = None) -> Step:
        """Build a step of ``student`` for a teacher to predict: of ``answered``, if given, the answers alone."""
        return self._step(number, student, self._learner.method.heads if answered is None else (), answered)

    def current_examples(self, number: int, student: int) -> pa.Table:
        """Return the current examples of a step's batch, in their order (a ``TOKENS`` table)."""
        indices = self.sampler_of(student).indices(number)
        return self._tokens.take(pa.array(indices[self._is_current[indices]])).combine_chunks()

    @property
    def longest_answer(self) -> int:
        """The number of tokens of the stage's longest current answer, without EOS."""
        lengths = self._lengths - self._tokens["prompt_length"].to_numpy()
        return int(lengths[self._is_current].max(initial=0))

    def _step(self, number: int, student: int, heads: Sequence[Head], answered: pa.Table | None) -> Step:
        learner = self._learner
        training, distillation = learner.experiment.training, learner.experiment.distillation
        indices = self.sampler_of(student).indices(number)
        batch = build_batch(self._tokens, indices, heads, learner.tokenizer, training.answer_token_weight, answered)
        uses_labels = self._uses_labels(self._is_current[indices])
        scored, denominators = {}, {}
        for head, positions in batch.heads.items():
            weights_N, divisor = label_weights(
                positions.weights_N,
                positions.num_current,
                current=uses_labels and head != "own",
                means=training.means,
            )
            distilled = len(positions.targets_N) if distillation.examples == "all" else positions.num_current
            if answered is not None and head != "own":
                distilled = 0
            scored[head] = replace(positions, weights_N=weights_N, num_distilled=distilled)
            denominators[head] = Denominators(nll=divisor, kd=float(distilled))
        sharding = learner.sharding
        parts = split(replace(batch, heads=scored), sharding.rank, sharding.size, learner.micro_batch)
        on_device = [part.to(learner.device) for part in parts]
        return Step(number, on_device, denominators, batch.num_examples, batch.num_tokens)

    def _uses_labels(self, is_current: np.ndarray) -> bool:
        """Return whether the current examples of a batch have a loss on their labels."""
        return self._learner.method.uses_labels(self._stage, replay_in_batch=not is_current.all())

    def _subset(self, student: int) -> np.ndarray | None:
        """Return the rows that a student learns: its own share of the current examples, and all others; None: all."""
        experiment = self._learner.experiment
        if experiment.peers.subset == 1.0:
            return None
        current = np.flatnonzero(self._is_current)
        generator = np.random.default_rng(derive(experiment.seed, "subset", self._stage, student))
        kept = generator.choice(current, max(1, round(experiment.peers.subset * len(current))), replace=False)
        return np.concatenate([np.sort(kept), np.flatnonzero(~self._is_current)])
