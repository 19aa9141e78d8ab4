"""Text of models and users made fit for a page. Escaping for HTML is the template's work, not done here."""

from __future__ import annotations

LONGEST = 700
"""Characters of a sample or prediction that are shown."""


def visible(text: str) -> str:
    """``text`` with all that does not print (control characters, marks that turn the direction of writing, lone
    surrogates, odd blanks) spelled out as an escape such as ``\\x07``. Line breaks stay."""
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )


def shortened(text: str, longest: int = LONGEST) -> str:
    """The start of ``text``, and how much of it is left out."""
    left_out = len(text) - longest
    return text if left_out <= 0 else f"{text[:longest]} … ({left_out} more characters)"
