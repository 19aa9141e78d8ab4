"""Recorded logits stay in step with the reservoir whose examples they belong to."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import ModelError
from ray_l4.learner.stored_logits import StoredLogits, digests
from ray_l4.learner.tensor_bytes import tensor_bytes
from ray_l4.text.stored import KEY, reservoir_of, stored_part
from ray_l4.text.tokens import tokens_table

NAN = float("nan")


def part(item: str, count: int, capacity: int | None = None) -> pa.Table:
    """The examples of an item that stay; the answer of example i has i % 3 tokens."""
    ids = [[1, 2, *range(i % 3)] for i in range(count)]
    names = [f"{item}-{i}" for i in range(count)]
    return stored_part(tokens_table(ids, [2] * count, [0] * count, [item] * count, names, "real"), item, 7, capacity)


def recorded(table: pa.Table, width: int = 2) -> StoredLogits:
    """Logits that tell from which example and token they come: digest, and number of the token."""
    marks = digests(table)
    sizes_M = np.asarray([len(ids) - 1 for ids in table["ids"].to_pylist()], dtype=np.int64)
    values_NK = torch.tensor(
        [
            [mark % 1000 + token / 10] * width
            for mark, size in zip(marks, sizes_M, strict=True)
            for token in range(size)
        ],
        dtype=torch.float32,
    )
    return StoredLogits(table[KEY].to_numpy(), marks, sizes_M, torch.zeros(values_NK.shape).int(), values_NK)


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), capacity=st.none() | st.integers(1, 12))
def test_they_lose_the_rows_that_the_reservoir_loses(counts: list[int], capacity: int | None) -> None:
    parts = [part(f"task{i}", count, capacity) for i, count in enumerate(counts)]
    stored = StoredLogits()
    for own in parts:
        stored = stored.joined(recorded(own), capacity)
    memory = reservoir_of(parts, capacity)
    rows = np.random.default_rng(0).permutation(memory.num_rows)
    _, values_NK = stored.of(memory, rows)
    drawn = memory.take(pa.array(rows))
    sizes = [len(ids) - 1 for ids in drawn["ids"].to_pylist()]
    expected = [
        mark % 1000 + token / 10 for mark, size in zip(digests(drawn), sizes, strict=True) for token in range(size)
    ]
    torch.testing.assert_close(values_NK[:, 0], torch.tensor(expected, dtype=torch.float32))


def test_bytes_restore_them() -> None:
    stored = StoredLogits().joined(recorded(part("a", 4)), None).joined(recorded(part("b", 5), width=3), 6)
    again = StoredLogits.from_bytes(stored.to_bytes())
    assert again.to_bytes().tobytes() == stored.to_bytes().tobytes()
    one, other = (own.joined(recorded(part("c", 3)), 6) for own in (stored, again))
    assert one.to_bytes().tobytes() == other.to_bytes().tobytes()


def test_entries_that_an_earlier_vocabulary_did_not_have_are_marked() -> None:
    stored = StoredLogits().joined(recorded(part("a", 1), width=2), None).joined(recorded(part("b", 1), width=3), None)
    assert stored.values_NK.isnan().tolist() == [[False, False, True], [False, False, False]]


def test_another_memory_is_refused() -> None:
    stored = StoredLogits().joined(recorded(part("a", 4)), None)
    for other in (part("a", 5), part("b", 4)):
        with pytest.raises(ModelError, match=r"recorded of 4 examples, which are not the \d stored ones"):
            stored.of(other, np.asarray([1, 2]))


@pytest.mark.parametrize("data", [b"nothing of the kind", tensor_bytes({"keys": torch.zeros(2)}).tobytes()])
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"recorded logits .*damaged"):
        StoredLogits.from_bytes(np.frombuffer(data, dtype=np.uint8))
