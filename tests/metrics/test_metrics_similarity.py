"""String similarity, compared with plain implementations."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_l4.metrics.similarity import common_subsequence, common_substring, similarity

TEXT = st.text("abc é", max_size=40)


def plain_subsequence(x: str, y: str) -> int:
    """Fill the textbook table: lengths[i][j] is the result for the first i and j characters."""
    lengths = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if a == b else max(lengths[i][j + 1], lengths[i + 1][j])
    return lengths[-1][-1]


def plain_substring(x: str, y: str) -> int:
    """Search for every substring of ``y`` in ``x``, from its place in ``y`` on."""
    pieces = [(y[i:j], i) for i in range(len(y)) for j in range(i + 1, len(y) + 1)]
    return max((len(piece) for piece, place in pieces if piece in x[place:]), default=0)


@given(TEXT, TEXT)
@example("a" * 130, "ab" * 70)  # longer than two machine words
def test_common_subsequence_equals_the_table(x: str, y: str) -> None:
    assert common_subsequence(x, y) == plain_subsequence(x, y) == common_subsequence(y, x)


@given(TEXT, TEXT)
def test_common_substring_equals_the_search_over_all_substrings(x: str, y: str) -> None:
    assert common_substring(x, y) == plain_substring(x, y)


def test_hand_computed_lengths() -> None:
    assert common_subsequence("abcbdab", "bdcaba") == 4
    assert common_substring("school/club team", "club teams") == len("club team")
    assert common_substring("ab", "xab") == 0  # too early in the header's name
    assert common_substring("xab", "ab") == common_substring("ab", "abx") == 2
    assert common_subsequence("", "abc") == common_substring("abc", "") == 0


def test_hand_computed_similarity() -> None:
    # "yer" in "year": subsequence 3 of 4, substring "ye", shorter length 3.
    assert similarity("yer", "year") == pytest.approx(3 / 4 + 2e-4 - 3e-8, abs=1e-15)
    assert similarity("", "year") == 0.0
    with pytest.raises(ZeroDivisionError):
        similarity("", "")


@given(TEXT.filter(bool), TEXT)
def test_no_other_text_is_as_similar_as_the_text_itself(x: str, y: str) -> None:
    assert similarity(x, x) > similarity(x, y) or x == y
