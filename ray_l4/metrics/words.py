"""Words of text in any script. On ASCII text all of this is what ROUGE-1.5.5 and the references' code do."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING
from unicodedata import normalize

if TYPE_CHECKING:
    from regex import Pattern

_WITHOUT_BLANKS = (
    *("Han", "Hiragana", "Katakana", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Javanese", "Balinese"),
    *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet"),
)
"""Scripts (names of Unicode) that put no blanks between words: each of their characters counts as a word."""
_BLANKS = dict.fromkeys("\u200b\u0f0b\u0f0c\u1361", " ")
"""Characters that only separate words: the zero-width space, Tibetan's tsheg and Ethiopic's word space."""
_APOSTROPHES = dict.fromkeys("\u02bb\u02bc", "'")
"""Letters that are mostly typed as an apostrophe: those of Ukrainian ``м\u02bcята`` and Uzbek ``o\u02bbzbek``."""
_PLAIN = str.maketrans(_BLANKS | _APOSTROPHES)


def folded(text: str) -> str:
    """Return ``text`` without its case, so that canonically equivalent texts (NFC, NFD) are equal.

    Characters that are not shown, such as joiners and soft hyphens, are removed. ASCII text is lower-cased.
    """
    if text.isascii():
        return text.lower()
    visible = _hidden().sub("", text.translate(_PLAIN))
    return normalize("NFC", normalize("NFD", visible).casefold())


def words(text: str) -> list[str]:
    """Return the words of ``text``, folded: letters and digits with their combining marks. All else separates words.

    Each character of a script that is written without blanks is a word, and so is each emoji or other symbol of
    Unicode's category So, which an answer may consist of.
    """
    return _word().findall(folded(text))


def spaced(text: str) -> str:
    """Put blanks around each character of a script that is written without them. ASCII text stays as it is."""
    return text if text.isascii() else _character().sub(r" \g<0> ", text)


def _of_scripts() -> str:
    """Return a set of characters, as a pattern. A character may be of several scripts: ``scx``, not ``sc``."""
    return "".join(f"\\p{{scx={script}}}" for script in _WITHOUT_BLANKS)


@cache
def _character() -> Pattern[str]:
    import regex  # `re` knows no scripts; imported late, since commands that score nothing do not need it

    return regex.compile(rf"(?=[\p{{L}}\p{{N}}])[{_of_scripts()}]\p{{M}}*")


@cache
def _word() -> Pattern[str]:
    import regex

    letter = rf"(?![{_of_scripts()}])[\p{{L}}\p{{N}}]"
    symbol = r"\p{So}[\p{M}\p{Emoji_Modifier}]*"
    return regex.compile(rf"{_character().pattern}|{symbol}|{letter}(?:{letter}|\p{{M}})*")


@cache
def _hidden() -> Pattern[str]:
    import regex

    return regex.compile(r"\p{Default_Ignorable_Code_Point}+")
