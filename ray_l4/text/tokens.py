"""The table of token ids from which all sequences of an example are built."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Origin = Literal["real", "generated", "stored", "answered"]
"""Where an example comes from: the current task; replay of generated or stored examples; or the current task, but with
an answer that a student gave itself."""

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

``ids``: (truncated) context + question + ANS + answer, without GEN and EOS. ``prompt_length``: number of ids up to and
including ANS. ``gen``: the task token that starts the LM sequence. ``origin``: an ``Origin``. With a chat template, the
turns up to the beginning of the answer's stand in place of context + question + ANS (``text/prompts.py``).

All sequences of REFERENCE.md#assembly follow from a row:
prompt = ids[:prompt_length]; X_qa = ids; Y_qa = ignore x (prompt_length - 1) + answer + EOS;
X_lm = GEN + ids; Y_lm = ids + EOS. With a chat template EOS is the end of a turn, and Y_lm has one id more:
X_lm = GEN + ids + EOS; Y_lm = ids + EOS + END, without the ids with which the template begins every conversation.
"""


class SpecialIds(Protocol):
    """Ids of the special tokens in sequences, as ``TaskTokenizer`` has them."""

    @property
    def ans(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def lm_start(self) -> tuple[int, ...]: ...
    @property
    def lm_end(self) -> tuple[int, ...]: ...


def tokens_table(
    ids: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    gens: Sequence[int],
    tasks: Sequence[str],
    sample_ids: Sequence[str],
    origin: Origin,
) -> pa.Table:
    """Build a ``TOKENS`` table in one chunk from its columns; all rows have the same origin."""
    starts = np.cumsum([0, *map(len, ids)], dtype=np.int64).astype(np.int32)
    flat = np.fromiter(chain.from_iterable(ids), np.int32, int(starts[-1]))
    columns = [prompt_lengths, gens, tasks, sample_ids, [origin] * len(ids)]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, list(TOKENS)[1:], strict=True)]
    return pa.Table.from_arrays([pa.ListArray.from_arrays(starts, flat), *arrays], schema=TOKENS)


def concatenated(*tables: pa.Table) -> pa.Table:
    """Return the rows of all tables, in order and in one chunk, such as current and replayed examples.

    REFERENCE.md#replay. To take rows from a column of lists in several chunks, Arrow would copy the whole column.
    """
    return pa.concat_tables(tables).combine_chunks()


def as_stored(tokens: pa.Table, stage: int) -> pa.Table:
    """Return real examples marked as stored ones for replay; row i has the id ``replay-<stage>-<i>``."""
    rows = range(tokens.num_rows)
    columns = {"sample_id": [f"replay-{stage}-{row}" for row in rows], "origin": ["stored" for _ in rows]}
    for name, values in columns.items():
        index = TOKENS.get_field_index(name)
        tokens = tokens.set_column(index, TOKENS.field(index), pa.array(values, pa.string()))
    return tokens


def sequence_lengths(tokens: pa.Table) -> np.ndarray:
    """Return the length of X_qa of every row, (num_rows,) int64. X_lm is one longer."""
    return pc.list_value_length(tokens["ids"]).to_numpy().astype(np.int64)
