"""Preparation of text by models and users for a page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.report.html.text import shortened, visible, wrapped

any_text = st.text(st.characters(exclude_categories=()), max_size=40)


@given(any_text)
def test_all_that_is_left_prints_and_can_be_written_as_utf_8(text: str) -> None:
    shown = visible(text)
    assert shown.replace("\n", "").isprintable()
    shown.encode("utf-8")
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, café – 漢字 <b>", "plain, café – 漢字 <b>"),
        ("a\nb", "a\nb"),
        ("a\x00\x1b[31m\tb", r"a\x00\x1b[31m\tb"),
        ("\u202eevil", r"\u202eevil"),
        ("\ud800", r"\ud800"),
        ("a\u00a0b", r"a\xa0b"),
    ],
)
def test_text_by_hand(text: str, expected: str) -> None:
    assert visible(text) == expected


@given(any_text, st.integers(3, 20))
def test_a_label_is_broken_into_lines_that_print(text: str, width: int) -> None:
    lines = wrapped(text, width).split("\n")
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) <= width or not text.strip()
    assert "".join(wrapped("own data, seed 0", width).split()) == "owndata,seed0"


@given(st.text(max_size=60), st.integers(1, 50))
def test_shortened_text_says_how_much_is_missing(text: str, longest: int) -> None:
    shown = shortened(text, longest)
    if len(text) <= longest:
        assert shown == text
    else:
        assert shown == f"{text[:longest]} … ({len(text) - longest} more characters)"
