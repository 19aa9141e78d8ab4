"""A memory of training examples as text, and the search for those that are most similar to a question.

Source: REFERENCE.md#retrieval. The examples that are found, the demonstrations, are a column of the examples that they
are shown before; ``text/prompts.py`` puts them into prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow as pa

from ray_l4.tasks.chat import history, transcript, user_turn
from ray_l4.tasks.schema import EXAMPLES
from ray_l4.tasks.slices import slices_of

if TYPE_CHECKING:
    from bm25s import BM25

REMEMBERED: pa.Schema = pa.schema(
    [EXAMPLES.field(name) for name in ("context", "question", "answer", "task", "sample_id")]
)
"""Training examples of an item of the stream, as a run directory keeps them for the memory."""

DEMONSTRATIONS = "demonstrations"
"""Column of examples with their demonstrations, the least similar first. Examples without it have none."""

_DEMONSTRATIONS_TYPE = pa.list_(pa.struct([("name", pa.string()), ("asked", pa.string()), ("answer", pa.string())]))
_WORD = r"(?u)\w+"


class Demonstration(TypedDict):
    """A training example that is shown before a question."""

    name: str
    """``ITEM/SAMPLE_ID``."""
    asked: str
    """Its context and question, each on lines of its own."""
    answer: str


class TextMemory:
    """The training examples of some items of the stream, indexed by the words of their contexts and questions."""

    def __init__(self, items: Mapping[str, pa.Table], count: int) -> None:
        """Index examples. ``items``: item -> its ``REMEMBERED`` table. ``count``: how many are shown before each."""
        self._count = count
        self._demonstrations: list[Demonstration] = []
        self._rows: dict[tuple[str, str], list[int]] = {}
        texts: list[str] = []
        for item, table in items.items():
            for row in (row for part in slices_of(table) for row in part.to_pylist()):
                self._rows.setdefault((row["context"], row["question"]), []).append(len(texts))
                texts.append(_text(row["context"], row["question"]))
                asked = user_turn(row["context"], row["question"])["content"]
                name = f"{item}/{row['sample_id']}"
                self._demonstrations.append({"name": name, "asked": asked, "answer": row["answer"]})
        self._index = _index_of(texts)

    def __len__(self) -> int:
        """Return the number of examples that can be shown."""
        return len(self._demonstrations)

    def show(self, examples: pa.Table) -> pa.Table:
        """Return ``examples`` (columns context, question and meta) with a column ``DEMONSTRATIONS``.

        An example is never shown to itself, nor to one with the same context and question.
        """
        shown = [self._found(row) for part in slices_of(examples) for row in part.to_pylist()]
        return examples.append_column(DEMONSTRATIONS, pa.array(shown, _DEMONSTRATIONS_TYPE))

    def _found(self, row: Mapping[str, Any]) -> list[Demonstration]:
        # The context of chat data is its earlier turns, of which a question from outside may have the turns alone.
        context = row["context"] or transcript(history(row["meta"]))
        (words,) = _words([_text(context, row["question"])])
        best = self.most_similar(words, self._rows.get((context, row["question"]), ()))
        return [self._demonstrations[position] for position in reversed(best)]

    def most_similar(self, words: Sequence[str], without: Sequence[int] = ()) -> list[int]:
        """Return the positions of the examples that are most similar to a question, the most similar one first.

        Of equally similar ones, those that came first are taken. ``without``: positions that are left out.
        """
        known = [] if self._index is None else self._index.get_tokens_ids(list(words))
        scores = np.zeros(len(self))
        if self._index is not None and known:
            scores = self._index.get_scores_from_ids(known)
        scores[list(without)] = -np.inf
        count = min(self._count, len(self) - len(without))
        if not count:
            return []
        least = np.partition(scores, -count)[-count]
        candidates = np.flatnonzero(scores >= least)
        ranked = candidates[np.argsort(-scores[candidates], kind="stable")]
        return [int(position) for position in ranked[:count]]


def remembered(examples: pa.Table) -> pa.Table:
    """Return what the memory keeps of training examples (a ``REMEMBERED`` table)."""
    return examples.select(REMEMBERED.names)


def shown_names(shown: Sequence[Demonstration]) -> tuple[str, ...]:
    """Return the names of demonstrations."""
    return tuple(each["name"] for each in shown)


def as_text(shown: Demonstration) -> str:
    """Return a demonstration as it stands before a context, for a model without a chat template."""
    return f"{shown['asked']}\nAnswer: {shown['answer'].strip()}\n###"


def _text(context: str, question: str) -> str:
    return f"{context}\n{question}"


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Return the words of texts in lower case. No word is left out as too frequent: BM25 weights it down."""
    import bm25s

    words: list[list[str]] = bm25s.tokenize(
        list(texts), token_pattern=_WORD, stopwords=None, return_ids=False, show_progress=False
    )
    return words


def _index_of(texts: Sequence[str]) -> BM25 | None:
    """Return the index of texts; None if they have no word.

    The numpy backend, in one thread and double precision, gives the same scores on every machine.
    """
    import bm25s  # a run without retrieval does not load it

    words = _words(texts)
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(word for own in words for word in own))}
    if not vocabulary:
        return None
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, dtype="float64", backend="numpy", csc_backend="numpy")
    index.index(([[vocabulary[word] for word in own] for own in words], vocabulary), show_progress=False)
    return index
