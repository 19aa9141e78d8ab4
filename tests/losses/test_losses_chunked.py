"""Chunks of rows: they cover every row once, within a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from losses_twins import some_examples

from ray_l4.losses.chunked import rehearsed_chunks, row_chunks


@some_examples
@given(rows=st.integers(0, 40), vocab=st.integers(1, 9), elements=st.integers(1, 60), least_rows=st.integers(1, 5))
def test_chunks_cover_every_row_once_within_the_budget(rows: int, vocab: int, elements: int, least_rows: int) -> None:
    chunks = row_chunks(rows, vocab, elements, least_rows)
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(rows))
    assert chunks, "there is one even without rows"
    for chunk in chunks:
        assert (chunk.stop - chunk.start) * vocab <= max(elements, least_rows * vocab)
    for chunk in chunks[:-1]:
        assert chunk.stop - chunk.start >= least_rows


def test_a_rehearsal_takes_the_first_two_chunks_and_the_last() -> None:
    with rehearsed_chunks():
        assert row_chunks(11, 3, 6, 1) == [slice(0, 2), slice(2, 4), slice(10, 11)]
    assert len(row_chunks(11, 3, 6, 1)) == 6, "only within the context"
