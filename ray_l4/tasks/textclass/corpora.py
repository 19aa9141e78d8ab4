"""Classes of the five text-classification sets of Zhang et al. (2015), and their spellings in files.

REFERENCE.md#text-classification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Corpus:
    """One data set. Answers are the names in ``classes``."""

    folders: tuple[str, ...]
    """Possible folders of its files within ``textclass/``: the short name, or that of the original archive."""
    columns: int
    """Number of columns of the original CSV files: the class number, from 1, then the texts."""
    classes: tuple[str, ...]
    """Names in the order of the original class numbers."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Other names of classes in some files, beyond differences of spelling (see ``class_of``)."""
    escaped: bool = False
    r"""Whether the files escape line breaks and quotes as ``\n`` and ``\"``, two characters each. AG News does not: in
    it a lone backslash stands for a line break, so ``\n`` may be the start of a word."""

    @property
    def question(self) -> str:
        """``Is this sentence A, B, or C?``"""
        *others, last = self.classes
        return f"Is this sentence {', '.join(others)}, or {last}?"

    def class_of(self, label: str) -> str | None:
        """Return the class that a file calls ``label``, ignoring case and punctuation; None if there is none."""
        return self._by_letters.get(_letters(label))

    @cached_property
    def _by_letters(self) -> dict[str, str]:
        names = {name: name for name in self.classes} | dict(self.other_names)
        return {_letters(name): meant for name, meant in names.items()}

    def clean(self, text: str) -> str:
        """Return a text as the model sees it: with the file's escapes resolved, otherwise as published."""
        if self.escaped:
            text = text.replace("\\n", " ").replace('\\"', '"')
        return text.strip()


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower().replace("&", "and"))


_STARS = ("very negative", "negative", "neutral", "positive", "very positive")
_STAR_WORDS = dict(zip(("terrible", "bad", "middle", "good", "wonderful"), _STARS, strict=True))

CORPORA: dict[str, Corpus] = {
    "ag": Corpus(
        folders=("agnews", "ag_news_csv"),
        columns=3,
        classes=("World", "Sports", "Business", "Sci/Tech"),
        other_names={"science": "Sci/Tech", "Science or Technology": "Sci/Tech"},
    ),
    "dbpedia": Corpus(
        folders=("dbpedia", "dbpedia_csv"),
        columns=3,
        classes=(
            *("Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation"),
            *("Building", "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork"),
        ),
        other_names={"thlete": "Athlete"},
    ),
    "yelp": Corpus(
        folders=("yelp", "yelp_review_full_csv"),
        columns=2,
        classes=_STARS,
        other_names=_STAR_WORDS,
        escaped=True,
    ),
    "amazon": Corpus(
        folders=("amazon", "amazon_review_full_csv"),
        columns=3,
        classes=_STARS,
        other_names=_STAR_WORDS,
    ),
    "yahoo": Corpus(
        folders=("yahoo", "yahoo_answers_csv"),
        columns=4,
        classes=(
            *("Society & Culture", "Science & Mathematics", "Health", "Education & Reference", "Computers & Internet"),
            *("Sports", "Business & Finance", "Entertainment & Music", "Family & Relationships"),
            "Politics & Government",
        ),
        other_names={"science": "Science & Mathematics", "business": "Business & Finance"},
        escaped=True,
    ),
}
"""By task name."""
