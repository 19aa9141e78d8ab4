"""Assignment of examples to steps: a pure function of the seed, so any step can be redone (REFERENCE.md#batching)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ray_l4.errors import DataError
from ray_l4.seeds import derive

LENGTH_EXPONENT = 1.163
"""Exponent of a sequence's length in its cost (REFERENCE.md#batching)."""


def auto_batch_size(num_examples: int) -> int:
    """Return the reference implementations' largest batch size: max(N // 1500, 4) (REFERENCE.md#batching)."""
    return max(num_examples // 1500, 4)


class Sampler:
    """The batches of one stage. Every epoch visits every example once, in a new random order.

    A batch is complete when it has ``batch_size`` examples, or when one more would make (longest sequence) ** 1.163 *
    (number of examples) exceed ``budget``. The reference implementation counts one example too many for the budget
    after a batch that was limited by its size (REFERENCE.md#batching); this mistake is not reproduced. An example that
    exceeds the budget alone is a batch of one. The last, partial batch of an epoch is kept.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        seed: int,
        stage: int,
        epochs: int,
        batch_size: int | Literal["auto"],
        budget: float | None = None,
        order: tuple[int, ...] = (),
        rows: np.ndarray | None = None,
    ) -> None:
        """Draw the order of the examples and divide it into batches.

        Args:
            lengths: (num_examples,) length of X_qa of every example (``tokens.sequence_lengths``).
            seed: the run's seed.
            stage: number of the stage, from 0; part of the seed.
            epochs: number of epochs.
            batch_size: largest number of examples in a batch; ``auto`` for ``auto_batch_size``.
            budget: largest cost of a batch; None for no limit.
            order: further names for the seed, if the students do not share one order.
            rows: (num_examples,) numbers of the examples, if they are only some of those of the stage.

        Raises:
            DataError: there is no example.
        """
        self.num_examples = len(lengths)
        if self.num_examples == 0:
            raise DataError(f"Stage {stage} has no training examples.")
        cap = auto_batch_size(self.num_examples) if batch_size == "auto" else batch_size
        costs = np.asarray(lengths, dtype=np.float64) ** LENGTH_EXPONENT
        orders, starts = [], []
        for epoch in range(epochs):
            generator = np.random.default_rng(derive(seed, "order", stage, epoch, *order))
            orders.append(generator.permutation(self.num_examples))
            starts.append(epoch * self.num_examples + _batch_starts(costs[orders[-1]], cap, budget))
        self._order = np.concatenate(orders) if rows is None else rows[np.concatenate(orders)]
        # Batch s is order[bounds[s]:bounds[s + 1]]; an epoch always begins with a new batch.
        self._bounds = np.append(np.concatenate(starts), len(self._order))

    @property
    def num_steps(self) -> int:
        """Number of steps of the stage, over all epochs."""
        return len(self._bounds) - 1

    def indices(self, step: int) -> np.ndarray:
        """Return the rows of this step's examples, (batch,) int64. Steps are numbered from 0 over the whole stage."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of {self.num_steps}")
        return self._order[self._bounds[step] : self._bounds[step + 1]]

    def last_step_of(self, epoch: int) -> int:
        """Return the number of the last step of an epoch; epochs are numbered from 0."""
        if not 0 <= epoch < len(self._order) // self.num_examples:
            raise IndexError(f"epoch {epoch} of {len(self._order) // self.num_examples}")
        return int(np.searchsorted(self._bounds, (epoch + 1) * self.num_examples)) - 1

    def examples_before(self, step: int) -> int:
        """Return the number of examples seen before the step, over all epochs.

        This is the unit of the learning-rate schedule (REFERENCE.md#schedule). ``step == num_steps`` gives the total.
        """
        if not 0 <= step <= self.num_steps:
            raise IndexError(f"step {step} of {self.num_steps}")
        return int(self._bounds[step])


def _batch_starts(costs: np.ndarray, cap: int, budget: float | None) -> np.ndarray:
    """Return the offsets at which batches start, (num_batches,) int64, given each example's cost (length ** 1.163)."""
    if budget is None:
        return np.arange(0, len(costs), cap)
    starts, count, highest = [0], 0, 0.0
    for i, cost in enumerate(costs.tolist()):
        highest = max(highest, cost)
        if count == cap or (count and highest * (count + 1) > budget):
            starts.append(i)
            count, highest = 0, cost
        count += 1
    return np.asarray(starts)
