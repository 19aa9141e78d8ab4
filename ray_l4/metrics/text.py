"""Exact match and bag-of-words F1, plain and normalised (REFERENCE.md#em-nf1)."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from ray_l4.metrics.item import Item, percentage
from ray_l4.metrics.words import folded, spaced

if TYPE_CHECKING:
    from regex import Pattern

_FULL_WIDTH = 0xFEE0
"""Distance in Unicode between a character of ASCII and its form as wide as a Chinese character."""


def normalise(text: str) -> str:
    """Fold the case of ``text``, then remove punctuation, then English articles, then collapse whitespace.

    Punctuation is that of ASCII, symbols such as ``$`` and ``+`` included, also in their full width; what Unicode calls
    so; and signs of all currencies, like ``$``. Characters of scripts that are written without blanks become words.
    """
    punctuation, articles = _removed()
    return " ".join(spaced(articles.sub(" ", punctuation.sub("", folded(text)))).split())


def f1(prediction: str, reference: str) -> float:
    """Return the F1 of the two bags of words, in [0, 1].

    As in SQuAD 2.0, it is 1 for two empty bags and 0 for one empty bag. Normalisation leaves a reference such as
    ``The`` empty.
    """
    predicted, expected = Counter(prediction.split()), Counter(reference.split())
    if not predicted and not expected:
        return 1.0
    return 2 * (predicted & expected).total() / (predicted.total() + expected.total())


def matches(items: Sequence[Item]) -> dict[str, float]:
    """Return ``em``, ``nf1`` and ``nem`` in percent, each with the best of an item's references."""
    exact, normalised_exact, normalised_f1 = [], [], []
    for item in items:
        prediction, references = normalise(item.prediction), [normalise(reference) for reference in item.references]
        exact.append(item.prediction in item.references)
        normalised_exact.append(prediction in references)
        normalised_f1.append(max(f1(prediction, reference) for reference in references))
    return {"em": percentage(exact), "nf1": percentage(normalised_f1), "nem": percentage(normalised_exact)}


@cache
def _removed() -> tuple[Pattern[str], Pattern[str]]:
    """Return patterns of punctuation and of articles. A combining mark belongs to its letter: it ends no word."""
    import regex  # imported late, like in ``words``

    ascii_signs = string.punctuation + "".join(chr(ord(sign) + _FULL_WIDTH) for sign in string.punctuation)
    punctuation = rf"[\p{{P}}\p{{Sc}}{regex.escape(ascii_signs)}]"
    return regex.compile(punctuation), regex.compile(r"(?<![\w\p{M}])(a|an|the)(?![\w\p{M}])")
