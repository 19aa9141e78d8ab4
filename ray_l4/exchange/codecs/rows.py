"""Softened log-probabilities of a few positions at a time, so that those of all never lie in memory at once."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ray_l4.losses.chunked import CHUNK_ELEMENTS
from ray_l4.losses.targets import softened


def softened_rows(logits_KV: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Rows, and their log-probabilities at ``temperature`` (rows, vocab); once and empty if there is no row."""
    num_rows, vocab = logits_KV.shape
    size = max(1, CHUNK_ELEMENTS // vocab)
    for first in range(0, max(1, num_rows), size):
        rows = slice(first, min(first + size, num_rows))
        yield rows, softened(logits_KV[rows], temperature)
