"""What a model remembers of the rows of a batch: it is given one token of each at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ray_l4.learner.key_values import KeyValues
from ray_l4.learner.model_calls import ModelCalls, new_cache

PREFILL_TOKENS = 4096
"""Tokens of prompts that go through a model at once, unless one prompt is longer."""
_PADDING = 0.25
"""Largest share of padding in a row of prompts that go through a model together."""


class DecodingState(Protocol):
    """The rows of a batch."""

    @property
    def columns(self) -> int:
        """The number of tokens of the longest row."""
        ...

    @property
    def capacity(self) -> int:
        """The number of columns that it has memory for."""
        ...

    def step(self, tokens_B: Tensor) -> Tensor:
        """Add one token to every row, and return the logits of the next one, (rows, vocab)."""
        ...

    def keep(self, order: Sequence[int]) -> None:
        """Let row i be what row ``order[i]`` was; rows that are not named leave."""
        ...

    def grow(self, capacity: int) -> None:
        """Get memory for ``capacity`` columns."""
        ...


def begin(calls: ModelCalls, ids: Sequence[Sequence[int]], room: int) -> DecodingState:
    """Run the model on all but the last token of every row, the longest first; there will be ``room`` more."""
    return MixedLengths(calls, ids, room) if calls.padded else OneLength(calls, ids)


class MixedLengths:
    """Rows of any lengths, with keys and values in one cache and a mask over what precedes the shorter ones.

    Prompts go through the model in groups of similar length, with padding after them, which no token sees. So no prompt
    is computed with padding before it.
    """

    def __init__(self, calls: ModelCalls, ids: Sequence[Sequence[int]], room: int) -> None:
        lengths = [len(row) - 1 for row in ids]
        longest = max(lengths)
        self._calls = calls
        self._device = calls.model.device
        self._cache = KeyValues(len(ids), longest, longest + room)
        self._starts = [longest - length for length in lengths]
        self._positions_B1 = torch.tensor(lengths, device=self._device)[:, None]
        self._set_starts()
        for rows in _groups(lengths):
            self._fill(ids[rows], rows)

    def _fill(self, ids: Sequence[Sequence[int]], rows: slice) -> None:
        width = len(ids[0]) - 1
        # The token that ends a row is also its padding: a padding token would cause warnings.
        padded = [[*row[:-1], *[row[-2]] * (width - len(row) + 1)] for row in ids]
        ids_BT = torch.tensor(padded, device=self._device)
        positions_BT = torch.arange(width, device=self._device).expand(len(ids), -1)
        with self._cache.filling(rows, [len(row) - 1 for row in ids]):
            self._calls.last_logits(ids_BT, self._cache, positions_BT, torch.ones_like(ids_BT))

    @property
    def columns(self) -> int:
        return self._cache.end - self._cache.first

    @property
    def capacity(self) -> int:
        return self._cache.capacity - self._cache.first

    def step(self, tokens_B: Tensor) -> Tensor:
        cache = self._cache
        mask_BT = None
        if self._starts_B1 is not None:
            mask_BT = self._columns_C[cache.first : cache.end + 1] >= self._starts_B1
        logits_BV = self._calls.last_logits(tokens_B[:, None], cache, self._positions_B1, mask_BT)
        cache.end += 1
        self._positions_B1 = self._positions_B1 + 1
        return logits_BV

    def keep(self, order: Sequence[int]) -> None:
        self._cache.keep(order)
        self._starts = [self._starts[row] for row in order]
        self._cache.first = min(self._starts)
        self._positions_B1 = self._positions_B1[list(order)]
        self._set_starts()

    def join(self, other: MixedLengths, capacity: int) -> None:
        """Take in the rows of ``other``, which come last, and get memory for ``capacity`` columns."""
        width = max(self.columns, other.columns)
        self._starts = [
            start - state._cache.first + width - state.columns for state in (self, other) for start in state._starts
        ]
        self._cache = KeyValues.joined(self._cache, other._cache, capacity)
        self._positions_B1 = torch.cat([self._positions_B1, other._positions_B1])
        self._set_starts()

    def grow(self, capacity: int) -> None:
        self._starts = [start - self._cache.first for start in self._starts]
        self._cache.grow(capacity)
        self._set_starts()

    def _set_starts(self) -> None:
        """Prepare masks; there need be none if all rows begin in one column."""
        self._starts_B1 = None
        if self._calls.always_masked or min(self._starts) < max(self._starts):
            self._starts_B1 = torch.tensor(self._starts, device=self._device)[:, None]
            self._columns_C = torch.arange(self._cache.capacity, device=self._device)


class OneLength:
    """Rows of one length, whatever the model keeps of them: recurrent states, or nothing at all."""

    def __init__(self, calls: ModelCalls, ids: Sequence[Sequence[int]]) -> None:
        self._calls = calls
        self._cache: Any = new_cache(calls.model) if calls.cache_argument else None
        self._ids_BT = torch.tensor([list(row[:-1]) for row in ids], dtype=torch.int64, device=calls.model.device)
        if self._cache is not None and self.columns:
            self._run(self._ids_BT, 0)

    def _run(self, ids_BT: Tensor, first: int) -> Tensor:
        rows, time = ids_BT.shape
        positions_BT = torch.arange(first, first + time, device=ids_BT.device).expand(rows, -1)
        return self._calls.last_logits(ids_BT, self._cache, positions_BT, None)

    @property
    def columns(self) -> int:
        return self._ids_BT.shape[1]

    @property
    def capacity(self) -> int:
        return self.columns

    def step(self, tokens_B: Tensor) -> Tensor:
        before = self.columns
        self._ids_BT = torch.cat([self._ids_BT, tokens_B[:, None]], dim=1)
        return self._run(self._ids_BT, 0) if self._cache is None else self._run(tokens_B[:, None], before)

    def keep(self, order: Sequence[int]) -> None:
        order_B = torch.tensor(order, device=self._ids_BT.device)
        self._ids_BT = self._ids_BT[order_B]
        if self._cache is not None and self.columns:
            self._cache.reorder_cache(order_B)

    def grow(self, capacity: int) -> None:
        """Do nothing: the cache grows by itself."""


def _groups(lengths: Sequence[int]) -> Iterator[slice]:
    """Yield the rows that go through the model together; ``lengths`` decrease, and rows of length 0 need no run."""
    first, count = 0, sum(length > 0 for length in lengths)
    while first < count:
        longest = lengths[first]
        last = min(count, first + max(1, PREFILL_TOKENS // longest))
        alike = sum(length >= longest * (1 - _PADDING) for length in lengths[first:last])
        yield slice(first, first + alike)
        first += alike
