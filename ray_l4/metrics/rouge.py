"""Average ROUGE of summaries and of generated sentences (REFERENCE.md#rouge).

An approximation of Perl ROUGE-1.5.5 with the package ``rouge-score``: Porter stemming, ROUGE-1, ROUGE-2 and
summary-level ROUGE-L (union of the longest common subsequences over sentences), F-measure with alpha 0.5. Like the
original, it lower-cases text and treats all non-alphanumeric characters as separators. Scores differ by a few tenths
of a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from ray_l4.metrics.item import Item, percentage

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_VARIANTS = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeLsum"}
"""Names of the averaged values, and those of ``rouge-score``, whose summary-level ROUGE-L is ``rougeLsum``."""


def sentences(text: str) -> str:
    """Split ``text`` at every full stop into one sentence per line, without empty ones."""
    parts = (" ".join(part.split()) for part in text.split("."))
    return "\n".join(part for part in parts if part)


def f_measures(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return the F-measures of one prediction in [0, 1], each the mean over the references (ROUGE's "model average").

    A text of a single word has no bigram, so its ``rouge2`` is 0 even for a perfect prediction.
    """
    candidate = sentences(prediction)
    scores = [_scorer().score(sentences(reference), candidate) for reference in references]
    return {name: sum(score[key].fmeasure for score in scores) / len(scores) for name, key in _VARIANTS.items()}


def average_rouge(items: Sequence[Item]) -> dict[str, float]:
    """Return ``rouge1``, ``rouge2``, ``rougeL`` and their mean ``avg_rouge`` as means over the items, in percent."""
    measured = [f_measures(item.prediction, item.references) for item in items]
    means = {name: percentage(values[name] for values in measured) for name in _VARIANTS}
    return {**means, "avg_rouge": sum(means.values()) / len(means)}


@cache
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes 0.3 s

    return RougeScorer(list(_VARIANTS.values()), use_stemmer=True)
