"""Exact match and bag-of-words F1, plain and normalised (REFERENCE.md#em-nf1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from ray_l4.metrics.item import Item, percentage

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower-case, delete ASCII punctuation, delete the articles, collapse whitespace, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of words, in [0, 1].

    Two empty bags agree (1), an empty and a filled one do not (0): the rule of SQuAD 2.0, for references such as
    ``The`` of which normalisation leaves nothing.
    """
    predicted, expected = Counter(prediction.split()), Counter(reference.split())
    if not predicted and not expected:
        return 1.0
    return 2 * (predicted & expected).total() / (predicted.total() + expected.total())


def matches(items: Sequence[Item]) -> dict[str, float]:
    """``em``, ``nf1`` and ``nem`` in percent; of several references the best one counts."""
    exact, normalised_exact, normalised_f1 = [], [], []
    for item in items:
        prediction, references = normalise(item.prediction), [normalise(reference) for reference in item.references]
        exact.append(item.prediction in item.references)
        normalised_exact.append(prediction in references)
        normalised_f1.append(max(f1(prediction, reference) for reference in references))
    return {"em": percentage(exact), "nf1": percentage(normalised_f1), "nem": percentage(normalised_exact)}
