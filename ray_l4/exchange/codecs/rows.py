"""Softened log-probabilities, computed for a few positions at a time to limit memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ray_l4.losses.chunked import CHUNK_ELEMENTS
from ray_l4.losses.targets import softened


def softened_rows(logits_KV: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows, each with its log-probabilities (rows, vocab) at ``temperature``; one slice if empty."""
    num_rows, vocab = logits_KV.shape
    size = max(1, CHUNK_ELEMENTS // vocab)
    for first in range(0, max(1, num_rows), size):
        rows = slice(first, min(first + size, num_rows))
        yield rows, softened(logits_KV[rows], temperature)
