"""Average ROUGE of summaries and of generated sentences (REFERENCE.md#rouge).

A stand-in for Perl ROUGE-1.5.5 on the package ``rouge-score``: Porter stemming, ROUGE-1, ROUGE-2 and summary-level
ROUGE-L (union of the longest common subsequences over sentences), F-measure with alpha 0.5. Like the original it
lower-cases and treats whatever is not alphanumeric as a separator. Expect differences of a few tenths.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

from ray_l4.metrics.item import Item, percentage

# Our names, in the order of the average, and those of the package, where only "Lsum" is summary-level.
_VARIANTS = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeLsum"}


def sentences(text: str) -> str:
    """``text`` with one sentence per line, cut at every full stop; empty sentences are dropped."""
    pieces = (" ".join(piece.split()) for piece in text.split("."))
    return "\n".join(piece for piece in pieces if piece)


def f_measures(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures of one prediction in [0, 1], each the mean over the references (ROUGE's "model average").

    A text of a single word has no bigram, so its ``rouge2`` is 0 even when the prediction is perfect.
    """
    candidate = sentences(prediction)
    scores = [_scorer().score(sentences(reference), candidate) for reference in references]
    return {name: sum(score[key].fmeasure for score in scores) / len(scores) for name, key in _VARIANTS.items()}


def average_rouge(items: Sequence[Item]) -> dict[str, float]:
    """``rouge1``, ``rouge2``, ``rougeL`` and their mean ``avg_rouge``: means over the items, in percent."""
    measured = [f_measures(item.prediction, item.references) for item in items]
    means = {name: percentage(values[name] for values in measured) for name in _VARIANTS}
    return {**means, "avg_rouge": sum(means.values()) / len(means)}


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(list(_VARIANTS.values()), use_stemmer=True)
