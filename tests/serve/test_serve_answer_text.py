"""Text that is given out piece by piece is the text of all tokens: nothing is taken back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_l4.serve.answer_text import AnswerText
from ray_l4.text.cleanup import REPLACEMENTS, clean_up

PARTS = [
    " do",
    " not",
    " n't",
    "'s",
    " '",
    " ",
    ".",
    " .",
    "a",
    " b",
    "  ",
    "é",
    "\n",
    *(old for old, _ in REPLACEMENTS),
]
"""Tokens out of which everything arises that the clean-up looks for."""


def decode(ids: Sequence[int]) -> str:
    return clean_up("".join(PARTS[index] for index in ids))


def spread(ids: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """Some tokens in groups of these sizes, and the rest."""
    groups, first = [], 0
    for size in sizes:
        groups.append(ids[first : first + size])
        first += size
    return [*groups, ids[first:]]


tokens = st.lists(st.integers(0, len(PARTS) - 1), max_size=30)
groups = st.lists(st.integers(1, 3), max_size=30)


@given(ids=tokens, sizes=groups, strip=st.booleans())
@example(ids=[8, 0, 1], sizes=[1, 1], strip=True)
def test_pieces_make_up_the_whole(ids: list[int], sizes: list[int], strip: bool) -> None:
    text = AnswerText(decode, strip=strip)
    *parts, last = spread(ids, sizes)
    given = "".join([*(text.add(part) for part in parts), text.add_last(last)])
    assert given == (decode(ids).strip() if strip else decode(ids))
    assert text.ids == ids


@given(ids=tokens, sizes=groups, stop=st.lists(st.sampled_from(["a", ". ", "b.", "do"]), min_size=1, max_size=2))
def test_a_stop_string_cuts_at_the_same_place_however_tokens_arrive(
    ids: list[int], sizes: list[int], stop: list[str]
) -> None:
    alone, grouped = (AnswerText(decode, stop) for _ in range(2))
    whole = alone.add_last(ids)
    *parts, last = spread(ids, sizes)
    pieces = [grouped.add(part) for part in parts]
    assert "".join([*pieces, grouped.add_last(last)]) == whole
    assert (grouped.stopped, grouped.ids) == (alone.stopped, alone.ids)
    assert not any(word in whole for word in stop)
    assert alone.stopped or whole == decode(ids).strip()


@pytest.mark.parametrize(("stop", "expected"), [((), "one two three four"), (("three",), "one two"), (("one",), "")])
def test_text_is_given_out_as_soon_as_it_is_settled(stop: tuple[str, ...], expected: str) -> None:
    words = [" one", " two", " three", " four"]
    text = AnswerText(lambda ids: "".join(words[index] for index in ids), stop)
    pieces = [text.add([index]) for index in range(4)]
    assert "".join([*pieces, text.add_last([])]) == expected
    assert (pieces[3] != "") == (not stop)
