"""The memory of training examples: BM25 by its plain formula, ties, and what an example is never shown."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.tasks.chat import Message, meta_of, transcript
from ray_l4.tasks.schema import EXAMPLES
from ray_l4.text.memory import DEMONSTRATIONS, REMEMBERED, TextMemory, remembered

K1, B = 1.5, 0.75


def table(texts: Sequence[tuple[str, str]], task: str = "a", meta: str = "") -> pa.Table:
    """Examples with these contexts and questions."""
    rows = [
        {
            "context": context,
            "question": question,
            "answer": f"answer {number}",
            "references": [f"answer {number}"],
            "task": task,
            "sample_id": str(number),
            "meta": meta,
        }
        for number, (context, question) in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def memory(count: int, **items: Sequence[tuple[str, str]]) -> TextMemory:
    return TextMemory({item: remembered(table(texts, item)) for item, texts in items.items()}, count)


def names(shown: pa.Table) -> list[list[str]]:
    return [[each["name"] for each in row] for row in shown[DEMONSTRATIONS].to_pylist()]


def plain_scores(corpus: Sequence[str], query: str) -> list[float]:
    """BM25 as Lucene has it, term by term (REFERENCE.md#retrieval)."""
    documents = [re.findall(r"\w+", text.lower()) for text in corpus]
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        counts, score = Counter(words), 0.0
        for word in re.findall(r"\w+", query.lower()):
            containing = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
            length = 1 - B + B * len(words) / average
            score += idf * counts[word] / (counts[word] + K1 * length)
        scores.append(score)
    return scores


CORPUS = [
    "the cheap chinese restaurant in the north",
    "a cheap hotel; the cheapest, in the centre",
    "north north north",
    "Übergröße in der Stadt",
    "x",
    "the the the the the the the restaurant",
]
QUERIES = ["cheap restaurant in the north", "the north", "übergröße x x", "NORTH, cheap?", "nothing known"]


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_those_of_the_plain_formula(query: str) -> None:
    found = memory(len(CORPUS), a=[(text, "") for text in CORPUS])
    words = re.findall(r"\w+", query.lower())
    expected = plain_scores([f"{text}\n" for text in CORPUS], query)
    assert found._index is not None
    known = found._index.get_tokens_ids(words)
    got = found._index.get_scores_from_ids(known) if known else np.zeros(len(CORPUS))
    assert got == pytest.approx(expected, abs=1e-12)
    assert found.most_similar(words) == sorted(range(len(CORPUS)), key=lambda row: (-expected[row], row))


WORDS = st.sampled_from(["cheap", "north", "the", "hotel", "x"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=8)


@given(corpus=TEXTS, query=st.lists(WORDS, max_size=4), count=st.integers(0, 9))
def test_of_equally_similar_examples_the_first_ones_are_taken(corpus: list[str], query: list[str], count: int) -> None:
    expected = [round(score, 9) for score in plain_scores(corpus, " ".join(query))]
    best = memory(count, a=[(text, "") for text in corpus]).most_similar(query)
    assert len(best) == min(count, len(corpus))
    ranked = [expected[row] for row in best]
    assert ranked == sorted(expected, reverse=True)[: len(best)]
    for row in best:
        assert all(other in best for other in range(row) if corpus[other] == corpus[row]), "earlier equals come first"


@given(first=TEXTS, second=TEXTS, count=st.integers(1, 4))
def test_no_example_is_shown_itself_or_another_with_the_same_context_and_question(
    first: list[str], second: list[str], count: int
) -> None:
    items = {"a": [(text, "how?") for text in first], "b": [(text, "how?") for text in second]}
    found = memory(count, **items)
    asked = {f"{item}/{row}": text for item, texts in items.items() for row, text in enumerate(texts)}
    for item, texts in items.items():
        for row, shown in enumerate(names(found.show(table(texts, item)))):
            assert f"{item}/{row}" not in shown
            assert all(asked[name] != texts[row] for name in shown)
            others = sum(text != texts[row] for text in asked.values())
            assert len(shown) == len(set(shown)) == min(count, others)


def test_the_most_similar_example_stands_next_to_the_question() -> None:
    found = memory(2, a=[("red apples", "q"), ("green apples and pears", "q"), ("blue sky", "q")])
    shown = found.show(table([("green apples", "q")]))
    assert names(shown) == [["a/0", "a/1"]]
    assert shown[DEMONSTRATIONS].to_pylist()[0][1] == {
        "name": "a/1",
        "asked": "green apples and pears\nq",
        "answer": "answer 1",
    }
    assert shown.drop_columns([DEMONSTRATIONS]).equals(table([("green apples", "q")]))


def test_texts_without_words_are_all_equally_similar() -> None:
    found = memory(2, a=[("?", "!"), ("...", "!"), ("--", "!")])
    assert names(found.show(table([("?", "!"), ("some words", "")]))) == [["a/2", "a/1"], ["a/1", "a/0"]]
    assert names(memory(2).show(table([("some words", "")]))) == [[]], "nothing is remembered yet"


def test_a_conversation_is_looked_up_by_its_turns_however_they_are_given() -> None:
    """A question from outside has the turns alone; an example of chat data has them as its context, too."""
    turns: list[Message] = [{"role": "user", "content": "I like pears"}, {"role": "assistant", "content": "fine"}]
    found = memory(1, a=[(transcript(turns), "and apples?"), ("pears", "and apples?"), ("sky", "blue?")])
    as_data = found.show(table([(transcript(turns), "and apples?")], meta=meta_of(turns)))
    from_outside = found.show(table([("", "and apples?")], meta=meta_of(turns)))
    assert names(as_data) == names(from_outside) == [["a/1"]], "not the conversation itself"


def test_what_is_remembered_of_an_example() -> None:
    assert remembered(table([("c", "q")])).schema == REMEMBERED
    assert REMEMBERED.names == ["context", "question", "answer", "task", "sample_id"]
