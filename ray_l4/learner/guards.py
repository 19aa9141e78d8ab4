"""Guards against forgetting, which act between backward and update: penalties and projections.

Source: REFERENCE.md#regularisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.learner.dark_guard import DarkGuard
from ray_l4.learner.guard_context import Guard, GuardContext
from ray_l4.learner.memory_draws import drawn_logits, drawn_rows
from ray_l4.learner.subspace_guard import SubspaceGuard
from ray_l4.losses.importance import fisher_diagonal, output_sensitivity, squared_output_norm, trainable
from ray_l4.losses.nll import at_least_float32
from ray_l4.losses.penalty import QuadraticPenalty
from ray_l4.losses.projection import project_gradients, take_gradients
from ray_l4.seeds import derive


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
            rows = drawn_rows(context, context.memory, step, "memory")
            logits_NV, targets_N = drawn_logits(context, context.memory, rows, step, "memory")
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
        "dark": DarkGuard,
        "subspace": SubspaceGuard,
    }
)
"""Value of ``Method.guard`` -> its constructor."""


def build_guard(name: str) -> Guard | None:
    """Build the guard called ``name`` (a key of ``GUARDS``); None for ``none``."""
    make = GUARDS[name]
    return make() if make else None
