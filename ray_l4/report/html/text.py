"""Preparation of text by models and users for a page. The template does the escaping for HTML."""

from __future__ import annotations

from textwrap import wrap

LABEL = 18
"""Largest number of characters of a line in the label of a chart."""
LONGEST = 700
"""Largest number of characters shown of a pseudo-example or answer."""


def visible(text: str) -> str:
    """Return ``text`` with every character that does not print, line breaks apart, as an escape such as ``\\x07``.

    These are control characters, marks that change the direction of writing, lone surrogates and unusual spaces.
    """
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )


def wrapped(text: str, width: int = LABEL) -> str:
    """Return the label of a chart, made ``visible``, in lines of at most ``width`` characters."""
    lines = wrap(visible(text).replace("\n", " "), width, break_on_hyphens=False)
    return "\n".join(lines) or visible(text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return the start of ``text``, and the number of characters that are left out."""
    left_out = len(text) - longest
    return text if left_out <= 0 else f"{text[:longest]} … ({left_out} more characters)"
