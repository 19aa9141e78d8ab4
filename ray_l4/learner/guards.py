"""What holds a model back from forgetting, between its gradient and its update: penalties and projections (REFERENCE.md#regularisers)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.losses.importance import fisher_diagonal, output_sensitivity, squared_output_norm, trainable
from ray_l4.losses.nll import at_least_float32
from ray_l4.losses.penalty import QuadraticPenalty
from ray_l4.losses.projection import project_gradients, take_gradients
from ray_l4.methods import peer_seed
from ray_l4.seeds import derive
from ray_l4.text.batches import Batch, build_batch

if TYPE_CHECKING:
    from ray_l4.learner.learner import Learner


class Guard(Protocol):
    """Stands between a learner's backward pass and its update."""

    def restrain(self, learner: Learner, step: int) -> Tensor:
        """Change the gradients of the learner's parameters; gives what it adds to the loss, a scalar."""

    def after_stage(self, learner: Learner) -> None:
        """Take note of the task that was just learned."""

    def to_bytes(self) -> np.ndarray | None:
        """All it knows, for a later ``restore``; None if it keeps nothing."""

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        """Go on from what ``to_bytes`` gave. Raises ModelError if that is damaged."""


class ImportanceGuard:
    """EWC and MAS: weights are held where they were, each as firmly as it mattered to the tasks before."""

    def __init__(self, measure: Callable[[Learner, pa.Table], dict[str, Tensor]]) -> None:
        self.penalty = QuadraticPenalty()
        self._measure = measure

    def restrain(self, learner: Learner, step: int) -> Tensor:
        strength = learner.experiment.regulariser.weight
        return self.penalty.add_gradient(trainable(learner.model), strength).to(learner.device)

    def after_stage(self, learner: Learner) -> None:
        examples = _some_current(learner)
        learner.model.eval()
        importance = self._measure(learner, examples)
        learner.model.train()
        self.penalty = self.penalty.merged(importance, trainable(learner.model))

    def to_bytes(self) -> np.ndarray | None:
        return self.penalty.to_bytes()

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        self.penalty = QuadraticPenalty.from_bytes(data, device)


class MemoryGuard:
    """A-GEM: a step never goes against the gradient on a batch of stored examples, drawn anew for each step."""

    def restrain(self, learner: Learner, step: int) -> Tensor:
        if learner.memory is not None and learner.memory.num_rows:
            parameters = trainable(learner.model)
            own = take_gradients(parameters)
            # Dropout of its own: what was drawn since the forward pass depends on who shares this process.
            seed = peer_seed(learner.experiment, learner.peer)
            torch.manual_seed(derive(seed, "memory dropout", learner.peer, learner.stage, step))
            answer_loss(learner, self._batch(learner, learner.memory, step)).backward()
            reference = take_gradients(parameters)
            for name, gradient in own.items():
                parameters[name].grad = gradient
            project_gradients(parameters, reference)
        return torch.zeros((), device=learner.device)

    def after_stage(self, learner: Learner) -> None:
        """The stored examples come with the next stage."""

    def to_bytes(self) -> np.ndarray | None:
        return None

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        """Nothing to restore."""

    def _batch(self, learner: Learner, memory: pa.Table, step: int) -> Batch:
        """As many stored examples as the step has of its own, at most all of them, drawn without replacement."""
        generator = np.random.default_rng(derive(learner.experiment.seed, "memory", learner.stage, step))
        size = min(len(learner.sampler.indices(step)), memory.num_rows)
        return _answers(learner, memory, generator.choice(memory.num_rows, size=size, replace=False))


def answer_loss(learner: Learner, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch's answer tokens, a scalar with its graph, in nats."""
    logits_NV = learner.logits(batch)["qa"]
    return functional.cross_entropy(at_least_float32(logits_NV), batch.heads["qa"].targets_N)


def _fisher(learner: Learner, examples: pa.Table) -> dict[str, Tensor]:
    """Log-likelihood of an example: the sum over its answer's tokens."""

    def log_likelihoods() -> Iterator[Tensor]:
        for row in range(examples.num_rows):
            batch = _answers(learner, examples, np.asarray([row]))
            yield answer_loss(learner, batch) * len(batch.heads["qa"].targets_N)

    return fisher_diagonal(trainable(learner.model), log_likelihoods())


def _sensitivity(learner: Learner, examples: pa.Table) -> dict[str, Tensor]:
    """Norm of the prediction of the answer's first token, which ANS asks for."""

    def output_norms() -> Iterator[Tensor]:
        for row in range(examples.num_rows):
            logits_NV = learner.logits(_answers(learner, examples, np.asarray([row])))["qa"]
            yield squared_output_norm(logits_NV[:1])

    return output_sensitivity(trainable(learner.model), output_norms())


def _answers(learner: Learner, table: pa.Table, rows: np.ndarray) -> Batch:
    weight = learner.experiment.training.answer_token_weight
    return build_batch(table, rows, ("qa",), learner.tokenizer, weight).to(learner.device)


def _some_current(learner: Learner) -> pa.Table:
    """The stage's own examples, or as many of them as the experiment wants looked at."""
    current = learner.tokens.filter(pc.equal(learner.tokens["origin"], "real")).combine_chunks()
    limit = learner.experiment.regulariser.examples
    if limit is None or limit >= current.num_rows:
        return current
    generator = np.random.default_rng(derive(learner.experiment.seed, "importance", learner.stage))
    return current.take(pa.array(np.sort(generator.choice(current.num_rows, size=limit, replace=False))))


GUARDS: Mapping[str, Callable[[], Guard] | None] = MappingProxyType(
    {
        "none": None,
        "fisher": lambda: ImportanceGuard(_fisher),
        "sensitivity": lambda: ImportanceGuard(_sensitivity),
        "memory": MemoryGuard,
    }
)
"""What a method may name as its guard, and how one is made."""


def build_guard(name: str) -> Guard | None:
    """A new guard of this kind (a key of ``GUARDS``), or None."""
    make = GUARDS[name]
    return make() if make else None
