"""Rows of logits, a chunk at a time.

With a vocabulary of 50,000, every float32 temporary of a loss takes 0.2 MB per position. Whoever goes through the rows
in chunks, and is done with one before the next one starts, has only the temporaries of one chunk in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

CHUNK_ELEMENTS = 2**20
"""Logits per chunk: 4 MiB in float32."""
LEAST_ROWS = 128
"""Fewest rows of a chunk, whatever the vocabulary: the output matrix is read anew for every chunk, and products of
fewer rows with it are slow."""
CACHED_ELEMENTS = 2**18
"""Logits that a processor works on at a time within a chunk, so that its temporaries stay in the cache."""
GPU_ELEMENTS = 2**26
"""Logits per chunk on a GPU, which has memory enough and launches fewer kernels with larger ones."""

_rehearsing: ContextVar[bool] = ContextVar("rehearsing", default=False)


@contextmanager
def rehearsed_chunks() -> Iterator[None]:
    """Within this context, visit the first two chunks and the last one only.

    All others take the memory of the second one. That serves ``ray-l4 plan``, which runs on tensors without values: a
    batch of 8,192 positions has hundreds of chunks, and their operators would take it minutes.
    """
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


def row_chunks(num_rows: int, vocab: int, elements: int = CHUNK_ELEMENTS, least_rows: int = LEAST_ROWS) -> list[slice]:
    """Return slices of ``elements`` logits that together cover all rows; a single empty one if there is no row.

    ``elements`` is rounded down to whole rows, of which a chunk has at least ``least_rows``.
    """
    rows = max(least_rows, 1, elements // max(1, vocab))
    firsts = range(0, max(1, num_rows), rows)
    kept = sorted({*firsts[:2], *firsts[-1:]}) if _rehearsing.get() else firsts
    return [slice(first, min(first + rows, num_rows)) for first in kept]
