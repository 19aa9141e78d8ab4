"""Clean-up of decoded text (REFERENCE.md#base-tokeniser, worked value of REFERENCE.md#worked-values)."""

from __future__ import annotations

import pytest

from ray_l4.text.cleanup import REPLACEMENTS, clean_up


def test_worked_value() -> None:
    assert clean_up(" do not go .") == " don't go."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" is it , or not ?", " is it, or not?"),
        (" i 'm sure they 're here !", " i'm sure they're here!"),
        (" we 've seen it is n't bob 's", " we've seen it isn't bob's"),
        (" rock ' roll", " rock'roll"),
        (" 3 . 5", " 3. 5"),
        ("nothing to do", "nothing to do"),
        ("", ""),
    ],
)
def test_replacements(text: str, expected: str) -> None:
    assert clean_up(text) == expected


def test_replacements_apply_in_the_reference_order() -> None:
    # " ' " is replaced before " 's": in the reverse order the second space would remain.
    assert clean_up("a ' sb") == "a'sb"
    # No replacement is applied twice, even if its result contains its pattern again.
    assert clean_up("a  ..") == "a .."
    assert [old for old, _ in REPLACEMENTS] == [
        " .", " ?", " !", " ,", " ' ", " n't", " 'm", " do not", " 's", " 've", " 're",
    ]  # fmt: skip
