"""The table of token ids: what is kept of an example, and from which all its sequences follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Origin = Literal["real", "generated", "stored"]

TOKENS = pa.schema(
    [
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("prompt_length", pa.int32(), nullable=False),
        pa.field("gen", pa.int32(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
    ]
)
"""One row per example.

``ids``: context (cut) + question + ANS + answer, without GEN and EOS. ``prompt_length``: number of ids up to and
including ANS. ``gen``: the task token that the LM sequence starts with. ``origin``: ``real`` for examples of the task
at hand; replayed ones are ``generated`` or ``stored``.

All sequences of REFERENCE.md#assembly follow from a row:
prompt = ids[:prompt_length]; X_qa = ids; Y_qa = ignore x (prompt_length - 1) + answer + EOS;
X_lm = GEN + ids; Y_lm = ids + EOS.
"""


class SpecialIds(Protocol):
    """The special tokens that sequences are built with. ``TaskTokenizer`` has them."""

    @property
    def ans(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def eos(self) -> int: ...


def tokens_table(
    ids: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    gens: Sequence[int],
    tasks: Sequence[str],
    sample_ids: Sequence[str],
    origin: Origin,
) -> pa.Table:
    """A ``TOKENS`` table in one chunk from its columns; every row has the same origin."""
    columns = [ids, prompt_lengths, gens, tasks, sample_ids, [origin] * len(ids)]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, TOKENS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=TOKENS)


def concatenated(*tables: pa.Table) -> pa.Table:
    """The rows of all tables, in order and in one chunk: current and replayed examples share one pool (REFERENCE.md#replay).

    One chunk matters: to take rows from a column of lists in several chunks, Arrow copies the whole column.
    """
    return pa.concat_tables(tables).combine_chunks()


def as_stored(tokens: pa.Table, stage: int) -> pa.Table:
    """Real examples as replayed ones; row i is called ``replay-<stage>-<i>``."""
    rows = range(tokens.num_rows)
    columns = {"sample_id": [f"replay-{stage}-{row}" for row in rows], "origin": ["stored" for _ in rows]}
    for name, values in columns.items():
        place = TOKENS.get_field_index(name)
        tokens = tokens.set_column(place, TOKENS.field(place), pa.array(values, pa.string()))
    return tokens


def sequence_lengths(tokens: pa.Table) -> np.ndarray:
    """Length of X_qa of every row: (num_rows,) int64. X_lm is one longer."""
    return pc.list_value_length(tokens["ids"]).to_numpy().astype(np.int64)
