"""Average ROUGE of summaries and of generated sentences (REFERENCE.md#rouge).

The figures of Perl ROUGE-1.5.5, computed with the package ``rouge-score``: Porter stemming, ROUGE-1, ROUGE-2 and
summary-level ROUGE-L (union of the longest common subsequences over sentences), F-measure with alpha 0.5. Several
references are pooled (the original's "model average"). Two differences remain: the original has a list of irregular
words beside its stemmer (FIDELITY.md#metrics), and knows ASCII letters only, where this knows those of all scripts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from ray_l4.metrics.item import Item, percentage
from ray_l4.metrics.words import words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_VARIANTS: dict[str, tuple[str, Callable[[int], int]]] = {
    "rouge1": ("rouge1", lambda tokens: tokens),
    "rouge2": ("rouge2", lambda tokens: max(tokens - 1, 0)),
    "rougeL": ("rougeLsum", lambda tokens: tokens),
}
"""The averaged values: the name of each in ``rouge-score`` (summary-level ROUGE-L is ``rougeLsum``), and how many
units a text of so many tokens has that can be hit."""

_FULL_STOPS = re.compile("[.。．｡।॥۔።]")


class WordTokenizer:
    """The tokeniser that ``rouge-score`` is given. On ASCII text it is that package's own, with stemming.

    Words of other scripts, and words with other letters, are not stemmed: the stemmer is for English.
    """

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer  # imports nltk, which takes 0.3 s

        self._default = DefaultTokenizer(use_stemmer=True)
        self._cached = lru_cache(maxsize=1024)(self._stems)  # one score asks for the same text several times

    def tokenize(self, text: str) -> list[str]:
        """Return the stems of the words of ``text``."""
        return list(self._cached(text))

    def _stems(self, text: str) -> list[str]:
        if text.isascii():
            return list(self._default.tokenize(text))
        return [stem for word in words(text) for stem in (self._stems(word) if word.isascii() else [word])]


def sentences(text: str) -> str:
    """Split ``text`` at every full stop into one sentence per line, without empty ones."""
    parts = (" ".join(part.split()) for part in _FULL_STOPS.split(text))
    return "\n".join(part for part in parts if part)


def f_measures(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return the F-measures of one prediction in [0, 1], over all its references together.

    Recall is the sum of hits over the sum of units of the references; precision is the sum of hits over the units of
    the prediction, times the number of references. With one reference, both are those of ``rouge-score``. A text of a
    single word has no bigram, so its ``rouge2`` is 0 even for a perfect prediction.
    """
    from rouge_score.scoring import fmeasure

    candidate = sentences(prediction)
    hits: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    for reference in map(sentences, references):
        scores, tokens = _scorer().score(reference, candidate), len(_tokenizer().tokenize(reference))
        for name, (key, units) in _VARIANTS.items():
            expected[name] += units(tokens)
            hits[name] += round(scores[key].recall * units(tokens))
    tokens = len(_tokenizer().tokenize(candidate))
    return {
        name: fmeasure(
            hits[name] / max(len(references) * units(tokens), 1),
            hits[name] / max(expected[name], 1),
        )
        for name, (_, units) in _VARIANTS.items()
    }


def average_rouge(items: Sequence[Item]) -> dict[str, float]:
    """Return ``rouge1``, ``rouge2``, ``rougeL`` and their mean ``avg_rouge`` as means over the items, in percent."""
    measured = [f_measures(item.prediction, item.references) for item in items]
    means = {name: percentage(values[name] for values in measured) for name in _VARIANTS}
    return {**means, "avg_rouge": sum(means.values()) / len(means)}


@cache
def _tokenizer() -> WordTokenizer:
    return WordTokenizer()


@cache
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([key for key, _ in _VARIANTS.values()], tokenizer=_tokenizer())
