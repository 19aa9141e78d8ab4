"""Guards against forgetting, which act between backward and update: penalties and projections.

Source: REFERENCE.md#regularisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.losses.importance import fisher_diagonal, output_sensitivity, squared_output_norm, trainable
from ray_l4.losses.nll import at_least_float32
from ray_l4.losses.penalty import QuadraticPenalty
from ray_l4.losses.projection import project_gradients, take_gradients
from ray_l4.methods import peer_seed
from ray_l4.seeds import derive


@dataclass(frozen=True)
class GuardContext:
    """The part of a stage's state that guards need."""

    peer: int
    stage: int
    model: PreTrainedModel
    experiment: ExperimentConfig
    tokens: pa.Table
    """All examples of the stage, current and replayed."""
    memory: pa.Table | None
    """Stored examples of earlier tasks."""
    answer_logits: Callable[[pa.Table, np.ndarray], tuple[Tensor, Tensor]]
    """Table of examples, row numbers -> logits (N, vocab) at all N answer tokens, with their graph, and those tokens
    (N,)."""
    num_examples: Callable[[int], int]
    """Step -> number of examples in its batch."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device


class Guard(Protocol):
    """Acts between the backward pass and the update of every step, and after every stage."""

    def restrain(self, context: GuardContext, step: int) -> Tensor:
        """Change the gradients of the model's parameters; returns what this adds to the loss, a scalar."""

    def after_stage(self, context: GuardContext) -> None:
        """Record what the guard needs to know about the task just learned."""

    def to_bytes(self) -> np.ndarray | None:
        """Serialise the guard's state for ``restore``; None if it has none."""

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        """Load what ``to_bytes`` returned. Raises ModelError if it is damaged."""


class ImportanceGuard:
    """EWC and MAS: a quadratic penalty holds each weight near its earlier value, scaled by its importance."""

    def __init__(self, measure: Callable[[GuardContext, pa.Table], dict[str, Tensor]]) -> None:
        self.penalty = QuadraticPenalty()
        self._measure = measure

    def restrain(self, context: GuardContext, step: int) -> Tensor:
        strength = context.experiment.regulariser.weight
        return self.penalty.add_gradient(trainable(context.model), strength).to(context.device)

    def after_stage(self, context: GuardContext) -> None:
        examples = _measured_examples(context)
        context.model.eval()
        importance = self._measure(context, examples)
        context.model.train()
        self.penalty = self.penalty.merged(importance, trainable(context.model))

    def to_bytes(self) -> np.ndarray | None:
        return self.penalty.to_bytes()

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        self.penalty = QuadraticPenalty.from_bytes(data, device)


class MemoryGuard:
    """A-GEM: projects each step's gradient so that it does not oppose that of a batch of stored examples."""

    def restrain(self, context: GuardContext, step: int) -> Tensor:
        if context.memory is not None and context.memory.num_rows:
            parameters = trainable(context.model)
            own = take_gradients(parameters)
            # A separate dropout seed, because students that share this process also advance the generator.
            seed = peer_seed(context.experiment, context.peer)
            torch.manual_seed(derive(seed, "memory dropout", context.peer, context.stage, step))
            logits_NV, targets_N = context.answer_logits(context.memory, self._rows(context, context.memory, step))
            functional.cross_entropy(at_least_float32(logits_NV), targets_N).backward()
            reference = take_gradients(parameters)
            for name, gradient in own.items():
                parameters[name].grad = gradient
            project_gradients(parameters, reference)
        return torch.zeros((), device=context.device)

    def after_stage(self, context: GuardContext) -> None:
        """Do nothing: the stored examples are given to the next stage."""

    def to_bytes(self) -> np.ndarray | None:
        return None

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        """Do nothing: there is no state."""

    def _rows(self, context: GuardContext, memory: pa.Table, step: int) -> np.ndarray:
        """Draw as many stored examples as the step's batch holds, at most all of them, without replacement."""
        generator = np.random.default_rng(derive(context.experiment.seed, "memory", context.stage, step))
        size = min(context.num_examples(step), memory.num_rows)
        return generator.choice(memory.num_rows, size=size, replace=False)


def _fisher(context: GuardContext, examples: pa.Table) -> dict[str, Tensor]:
    """Estimate the diagonal of the Fisher information from the log-likelihood of each example's whole answer."""

    def log_likelihoods() -> Iterator[Tensor]:
        for row in range(examples.num_rows):
            logits_NV, targets_N = context.answer_logits(examples, np.asarray([row]))
            yield functional.cross_entropy(at_least_float32(logits_NV), targets_N) * len(targets_N)

    return fisher_diagonal(trainable(context.model), log_likelihoods())


def _sensitivity(context: GuardContext, examples: pa.Table) -> dict[str, Tensor]:
    """Measure the sensitivity of the output at the answer's first token, as MAS does."""

    def output_norms() -> Iterator[Tensor]:
        for row in range(examples.num_rows):
            logits_NV, _ = context.answer_logits(examples, np.asarray([row]))
            yield squared_output_norm(logits_NV[:1])

    return output_sensitivity(trainable(context.model), output_norms())


def _measured_examples(context: GuardContext) -> pa.Table:
    """Select the current examples, or a random ``regulariser.examples`` of them if that is set."""
    current = context.tokens.filter(pc.equal(context.tokens["origin"], "real")).combine_chunks()
    limit = context.experiment.regulariser.examples
    if limit is None or limit >= current.num_rows:
        return current
    generator = np.random.default_rng(derive(context.experiment.seed, "importance", context.stage))
    return current.take(pa.array(np.sort(generator.choice(current.num_rows, size=limit, replace=False))))


GUARDS: Mapping[str, Callable[[], Guard] | None] = MappingProxyType(
    {
        "none": None,
        "fisher": lambda: ImportanceGuard(_fisher),
        "sensitivity": lambda: ImportanceGuard(_sensitivity),
        "memory": MemoryGuard,
    }
)
"""Value of ``Method.guard`` -> its constructor."""


def build_guard(name: str) -> Guard | None:
    """Build the guard called ``name`` (a key of ``GUARDS``); None for ``none``."""
    make = GUARDS[name]
    return make() if make else None
