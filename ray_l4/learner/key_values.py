"""Keys and values of a batch, in buffers that are written in place instead of being copied for every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class KeyValues(Cache):
    """A cache whose rows end in the same column: a row with fewer tokens begins later, after padding.

    Only columns from ``first`` to ``end`` are shown to the model. Layers make their buffers when they are first used.
    """

    def __init__(self, rows: int, end: int, capacity: int) -> None:
        """Begin with ``rows`` rows and ``end`` columns, which ``filling`` fills; there is room for ``capacity``."""
        super().__init__(layer_class_to_replicate=partial(_Layer, self))
        self.rows = rows
        self.first = 0
        self.end = end
        self.capacity = capacity
        self.target: tuple[slice, Tensor | None] | None = None

    @contextmanager
    def filling(self, rows: slice, lengths: Sequence[int]) -> Iterator[None]:
        """Within this context, the model runs on new rows, of which row i has ``lengths[i]`` tokens and padding after
        them. It sees these alone.
        """
        width = max(lengths)
        places_BT = None
        if min(lengths) < width:
            shift_B = torch.tensor([width - length for length in lengths])
            places_BT = (torch.arange(width) - shift_B[:, None]).clamp_(min=0)
        self.target = (rows, places_BT)
        yield
        self.target = None

    def keep(self, order: Sequence[int]) -> None:
        """Let row i be what row ``order[i]`` was; rows that are not named leave. Few rows should change places."""
        moves = [(old, new) for new, old in enumerate(order) if old != new]
        self.rows = len(order)
        if not moves:
            return
        old, new = ([move[side] for move in moves] for side in (0, 1))
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                shown = buffer[:, :, self.first : self.end]
                shown[new] = shown[old]

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` columns, counted from ``first``, which becomes column 0."""
        for layer in self.layers:
            layer.keys = self._grown(layer.keys, capacity)
            layer.values = self._grown(layer.values, capacity)
        self.end -= self.first
        self.first, self.capacity = 0, capacity

    @classmethod
    def joined(cls, one: KeyValues, other: KeyValues, capacity: int) -> KeyValues:
        """Return a cache with the rows of ``one``, then those of ``other``, and room for ``capacity`` columns."""
        parts = [(cache.end - cache.first, cache) for cache in (one, other)]
        width = max(columns for columns, _ in parts)
        whole = cls(one.rows + other.rows, width, capacity)
        for index, like in enumerate(one.layers or other.layers):
            layer = _Layer(whole)
            layer.lazy_initialization(like.keys, like.values)
            first = 0
            for columns, cache in parts:
                if cache.layers:  # a cache of rows with a single token, not given to the model yet, has none
                    for into, held in (
                        (layer.keys, cache.layers[index].keys),
                        (layer.values, cache.layers[index].values),
                    ):
                        shown = held[: cache.rows, :, cache.first : cache.end]
                        into[first : first + cache.rows, :, width - columns : width] = shown
                first += cache.rows
            whole.layers.append(layer)
        return whole

    def _grown(self, buffer: Tensor, capacity: int) -> Tensor:
        _, heads, _, size = buffer.shape
        grown = buffer.new_zeros(self.rows, heads, capacity, size)
        grown[:, :, : self.end - self.first] = buffer[: self.rows, :, self.first : self.end]
        return grown

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.target is not None else self.end - self.first

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class _Layer(CacheLayerMixin):
    """The buffers of one layer, (rows, heads, capacity, size of a head)."""

    def __init__(self, space: KeyValues) -> None:
        super().__init__()
        self._space = space

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens, and return all that these tokens may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        space = self._space
        if space.target is not None:
            rows, places_BT = space.target
            for buffer, given in ((self.keys, key_states), (self.values, value_states)):
                first = space.end - given.shape[2]
                buffer[rows, :, first : space.end] = _shifted(given, places_BT)
            return key_states, value_states
        end = space.end + key_states.shape[2]
        self.keys[: space.rows, :, space.end : end] = key_states
        self.values[: space.rows, :, space.end : end] = value_states
        return self.keys[: space.rows, :, space.first : end], self.values[: space.rows, :, space.first : end]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: padding is masked, but its weight of 0 times what memory happens to hold may be NaN.
        space = self._space
        self.keys, self.values = (
            given.new_zeros(space.rows, given.shape[1], space.capacity, given.shape[3])
            for given in (key_states, value_states)
        )
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._space.get_mask_sizes(query_length, 0)

    def get_seq_length(self) -> int:
        return self._space.get_seq_length()

    def get_max_length(self) -> int:
        return -1


def _shifted(given: Tensor, places_BT: Tensor | None) -> Tensor:
    """Return what is ``given`` for a batch, (rows, heads, time, size), with the padding of every row before it."""
    if places_BT is None:
        return given
    index = places_BT.to(given.device)[:, None, :, None].expand(-1, given.shape[1], -1, given.shape[3])
    return given.gather(2, index)
