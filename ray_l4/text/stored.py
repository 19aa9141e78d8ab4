"""Stored real examples: which of an item's examples a reservoir can hold, and the reservoir of several items.

Every example has a random key that follows from the seed, its item and its row; those with the smallest keys are
stored. This is reservoir sampling (Vitter 1985) without state: the reservoir of any stage can be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ray_l4.seeds import derive
from ray_l4.text.tokens import TOKENS, concatenated

KEY = "key"
"""Name of the column of keys."""
_KEY = pa.field(KEY, pa.float64(), nullable=False)
STORED: pa.Schema = TOKENS.append(_KEY)
"""Examples of one item with their keys, in the order of the item."""


def stored_part(tokens: pa.Table, item: str, seed: int, capacity: int | None) -> pa.Table:
    """Return the examples of an item that a reservoir of ``capacity`` can hold (a ``STORED`` table); None: all."""
    keys = np.random.default_rng(derive(seed, "reservoir", item)).random(tokens.num_rows)
    table = tokens.combine_chunks().append_column(_KEY, pa.array(keys))
    return table if capacity is None else _smallest(table, capacity)


def reservoir_of(parts: Sequence[pa.Table], capacity: int | None) -> pa.Table:
    """Return the stored examples of several items (a ``TOKENS`` table): at most ``capacity``, each equally likely.

    ``parts``: the ``STORED`` table of each item, in the order of the stream.
    """
    seen = concatenated(*parts)
    return (seen if capacity is None else _smallest(seen, capacity)).drop_columns([_KEY.name])


def kept_rows(keys: np.ndarray, capacity: int | None) -> np.ndarray:
    """Return the numbers of the rows that a reservoir keeps: those with the smallest ``keys``, in order."""
    return np.sort(np.argsort(keys, kind="stable")[:capacity])


def _smallest(table: pa.Table, count: int) -> pa.Table:
    """Return the rows with the ``count`` smallest keys, in order."""
    if count >= table.num_rows:
        return table
    return table.take(pa.array(kept_rows(table[_KEY.name].to_numpy(), count)))
