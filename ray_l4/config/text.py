"""What a text shows: blanks of all kinds, and the characters that a name cannot hold."""

from __future__ import annotations

import unicodedata

_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
"""Unicode categories of characters that show nothing: control, format (such as U+200B and U+FEFF) and spaces."""
_EMPTY_GLYPHS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe0e\ufe0f")
"""Characters of other categories that show nothing either: fillers, the empty Braille pattern, variation selectors."""
_MOST_DIGITS = 9
_JOINERS = "\u200c\u200d"
"""Format characters that words of some scripts and emoji need."""


def counted(count: int, thing: str) -> str:
    """Return the number with the noun in singular or plural, for example ``1 student`` or ``2 students``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def index_of(text: str) -> int | None:
    """Return the number that a text of at most nine digits stands for; None for another text."""
    return int(text) if len(text) <= _MOST_DIGITS and text.isascii() and text.isdecimal() else None


def shown(text: str, most: int = 80) -> str:
    """Return a text in quotes for a message, shortened to about ``most`` characters."""
    return repr(text if len(text) <= most else f"{text[: most - 3]}...")


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character: it is empty, or holds only spaces and characters of no width."""
    return all(map(_is_invisible, text))


def check_name(name: str) -> str:
    """Return ``name``. Raises ValueError if tables, files and messages could not show it as it is."""
    if is_blank(name):
        raise ValueError(f"a task needs a name that can be seen, found {name!r}; give it one")
    bad = next((char for char in name if _unfit(char)), None)
    if bad is not None:
        raise ValueError(
            f"a task's name cannot contain {bad!r} (U+{ord(bad):04X}), found {name!r}; expected visible characters "
            "and single spaces, without |"
        )
    if name != name.strip():
        raise ValueError(f"a task's name cannot begin or end with a space, found {name!r}; remove the space")
    if "  " in name or any(unicodedata.category(char) == "Zs" and char != " " for char in name):
        raise ValueError(f"a task's name can only have single, ordinary spaces, found {name!r}; replace the others")
    return name


def same_name(name: str) -> str:
    """Return a form that is equal for names which look alike because they differ only in their Unicode composition."""
    return unicodedata.normalize("NFC", name)


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) in _INVISIBLE or char in _EMPTY_GLYPHS


def _unfit(char: str) -> bool:
    category = unicodedata.category(char)
    return char == "|" or category == "Cs" or (category in _INVISIBLE - {"Zs"} and char not in _JOINERS)
