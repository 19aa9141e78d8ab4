"""Rows of a table as a sequence of objects."""

from __future__ import annotations

import pickle
from operator import itemgetter

import pyarrow as pa
import pytest

from ray_l4.tasks.slices import ROWS, slices_of
from ray_l4.text.rows import Rows


@pytest.mark.parametrize("count", [0, 1, ROWS, ROWS + 1, 3 * ROWS])
def test_rows_are_a_sequence_like_a_list(count: int) -> None:
    table = pa.table({"a": pa.array(range(count), pa.int64())})
    rows, plain = Rows(table, itemgetter("a")), list(range(count))
    assert list(rows) == plain and len(rows) == count
    assert rows[:2] == plain[:2] and rows[::-1] == plain[::-1]
    assert [rows[index] for index in range(-count, count)] == [*plain, *plain]
    with pytest.raises(IndexError):
        rows[count]
    assert list(pickle.loads(pickle.dumps(rows))) == plain


def test_slices_are_in_order_and_there_is_always_one() -> None:
    table = pa.table({"a": list(range(7))})
    assert [part["a"].to_pylist() for part in slices_of(table, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part.num_rows for part in slices_of(table.slice(0, 0))] == [0]
