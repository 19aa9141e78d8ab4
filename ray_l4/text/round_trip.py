"""What of a text is lost when a tokeniser encodes and decodes it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from ray_l4.config.text import is_blank
from ray_l4.text.tokenizer import TaskTokenizer

_SHOWN = 40
"""Characters of a text quoted in a message."""
_RARE = 0.01
"""What is lost is not worth a message up to this share of all characters."""
_WORD = re.compile(r"[^\W\d_]+")


def what_is_lost(tokenizer: TaskTokenizer, texts: Iterable[str]) -> str | None:
    """Describe what ``tokenizer`` does not give back of ``texts``; None if they come back as far as they have to.

    Tokenisers may lower-case, strip accents, unify forms of characters, shorten runs of blanks, put blanks around
    punctuation or between characters of scripts without blanks, and replace a rare character by the token for unknown
    ones. None of this is counted, or it remains within the shares of ``_MEASURES``.
    """
    pairs = [(text, tokenizer.round_trip(text)) for text in texts if text.strip()]
    rare = _RARE * sum(_characters(text).total() for text, _ in pairs)
    for what, (least, count) in _MEASURES.items():
        counts = [(count(text), count(back)) for text, back in pairs]
        total = sum(mine.total() for mine, _ in counts)
        kept = sum((mine & theirs).total() for mine, theirs in counts)
        if kept < least * total and total - kept > rare:
            text, back = next(pair for pair, (mine, theirs) in zip(pairs, counts, strict=True) if mine - theirs)
            shown = f"{text.strip()[:_SHOWN]!r} comes back as {back.strip()[:_SHOWN]!r}"
            return f"of {total} {what}, {kept} remain; for example, {shown}"
    return None


def _characters(text: str) -> Counter[str]:
    return Counter("".join(_plain(text).split()))


def _blanks(text: str) -> Counter[str]:
    return Counter({" ": max(len(text.split()) - 1, 0)})


def _words(text: str) -> Counter[str]:
    """Count the words of scripts with upper and lower case, all of which put blanks between words."""
    return Counter(word for word in _WORD.findall(_plain(text)) if word.upper() != word)


def _digits(text: str) -> Counter[str]:
    return Counter(filter(str.isdigit, _plain(text)))


def _vowel_signs(text: str) -> Counter[str]:
    """Count the marks that are letters rather than accents, as in Hindi and Thai: those of no place or a virama's."""
    marks = (c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) in ("Mn", "Mc"))
    return Counter(c for c in marks if unicodedata.combining(c) in (0, 9) and not is_blank(c))


_MEASURES: dict[str, tuple[float, Callable[[str], Counter[str]]]] = {
    "characters": (0.9, _characters),
    "blanks between words": (0.5, _blanks),
    "words": (0.5, _words),
    "digits": (0.5, _digits),
    "vowel signs": (0.5, _vowel_signs),
}
"""What is counted -> the smallest share of it that has to remain, and how it is counted."""


def _plain(text: str) -> str:
    """Return ``text`` without case, accents, compatibility forms and invisible characters."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in decomposed if c.isspace() or unicodedata.category(c)[0] not in "MC")
