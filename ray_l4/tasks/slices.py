"""Tables a few rows at a time: their values as Python objects take many times the memory that Arrow needs for them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

ROWS = 256
"""Rows of a slice: few enough that long articles and what a tokeniser knows of their tokens fit into little memory."""


def slices_of(table: pa.Table, rows: int = ROWS) -> Iterator[pa.Table]:
    """Yield the table in slices of at most ``rows``, in order and without copying; one without rows if it has none."""
    for start in range(0, max(table.num_rows, 1), rows):
        yield table.slice(start, rows)
