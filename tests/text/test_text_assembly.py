"""Assembly: the worked sequences of REFERENCE.md#worked-values, truncation, dropping, and prompts for evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import DataError, ModelError
from ray_l4.text.assembly import Dropped, assemble, assemble_prompts, longest_answer, refuse_if_many, with_answers
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import TOKENS, as_stored, concatenated, sequence_lengths

Examples = Callable[..., pa.Table]

CONTEXT, QUESTION, ANSWER = "cheap chinese town", "in north", "food area"


def words(number: int) -> str:
    return " ".join(["cheap"] * number)


def test_one_word_is_one_token(tokenizer: TaskTokenizer) -> None:
    """The sizes below rely on this."""
    assert len(tokenizer.encode(words(5))) == 5


def test_worked_sequences(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    c, q, a = (tokenizer.encode(text) for text in (CONTEXT, QUESTION, ANSWER))
    table, dropped = assemble(examples_of((CONTEXT, QUESTION, ANSWER), task="woz.en"), tokenizer, 100)
    assert dropped == []
    assert table.schema == TOKENS
    assert table.to_pylist() == [
        {
            "ids": [*c, *q, tokenizer.ans, *a],
            "prompt_length": len(c) + len(q) + 1,
            "gen": tokenizer.gen["woz.en"],
            "task": "woz.en",
            "sample_id": "woz.en-0",
            "origin": "real",
        }
    ]


def test_worked_truncation(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    """REFERENCE.md#worked-values: c of 3, q of 2 and a of 2 words.

    With L = 8, two context tokens are kept in training and all three in the prompt.
    """
    examples = examples_of((words(3), words(2), words(2)))
    c, q, a = (tokenizer.encode(words(n)) for n in (3, 2, 2))
    table, dropped = assemble(examples, tokenizer, 8)
    assert dropped == []
    assert table["ids"].to_pylist() == [c[:2] + q + [tokenizer.ans] + a]
    prompts, _ = assemble_prompts(examples, tokenizer, 8, reserve=1)
    assert prompts["ids"].to_pylist() == [c + q + [tokenizer.ans]]


@pytest.mark.parametrize(("short", "kept"), [(0, 0), (1, None)])
def test_an_example_whose_question_and_answer_do_not_fit_is_dropped(
    tokenizer: TaskTokenizer, examples_of: Examples, short: int, kept: int | None
) -> None:
    limit = 6 - short
    examples = examples_of((words(3), words(2), words(2)), (words(1), "", ""))
    table, dropped = assemble(examples, tokenizer, limit)
    if kept is None:
        assert [drop.sample_id for drop in dropped] == ["sst-0"]
        assert "2 and answer of 2 tokens exceed 5" in dropped[0].reason
        assert table["sample_id"].to_pylist() == ["sst-1"]
    else:
        assert dropped == []
        assert table["prompt_length"].to_pylist() == [3, 2]


text = st.text(alphabet="abc deé?", max_size=25)
rows = st.lists(st.tuples(text, text, text), max_size=6)


@given(rows=rows, max_length=st.integers(2, 40))
def test_only_the_context_is_cut_and_no_more_than_needed(
    tokenizer: TaskTokenizer, examples_of: Examples, rows: list[tuple[str, str, str]], max_length: int
) -> None:
    table, dropped = assemble(examples_of(*rows), tokenizer, max_length)
    by_id = {row["sample_id"]: row for row in table.to_pylist()}
    gone = {drop.sample_id for drop in dropped}
    assert len(by_id) + len(gone) == len(rows)
    for i, (context, question, answer) in enumerate(rows):
        c, q, a = (tokenizer.encode(t) for t in (context, question, answer))
        if f"sst-{i}" in gone:
            assert len(q) + 1 + len(a) + 1 > max_length
            continue
        row = by_id[f"sst-{i}"]
        ids, split = row["ids"], row["prompt_length"]
        assert len(ids) + 1 <= max_length
        assert ids[split - 1] == tokenizer.ans
        assert ids[split:] == a
        kept = split - 1 - len(q)
        assert ids[:kept] == c[:kept]
        assert ids[kept : split - 1] == q
        assert kept == len(c) or len(ids) + 1 == max_length
    assert table["sample_id"].to_pylist() == sorted(by_id, key=lambda s: int(s.split("-")[1]))


@given(rows=rows.filter(bool), reserve=st.integers(1, 12), answer_length=st.none() | st.integers(1, 30))
def test_prompts_keep_their_order_and_leave_room(
    tokenizer: TaskTokenizer,
    examples_of: Examples,
    rows: list[tuple[str, str, str]],
    reserve: int,
    answer_length: int | None,
) -> None:
    max_length = 75
    prompts, longest = assemble_prompts(examples_of(*rows), tokenizer, max_length, reserve, answer_length)
    assert longest == (answer_length or max(1, *(len(tokenizer.encode(a)) for *_, a in rows), 1))
    assert prompts["sample_id"].to_pylist() == [f"sst-{i}" for i in range(len(rows))]
    for row, (context, question, _) in zip(prompts.to_pylist(), rows, strict=True):
        c, q = tokenizer.encode(context), tokenizer.encode(question)
        assert row["prompt_length"] == len(row["ids"])
        kept = len(row["ids"]) - len(q) - 1
        assert row["ids"] == c[:kept] + q + [tokenizer.ans]
        room = max_length - len(row["ids"])
        assert room >= min(longest, reserve)
        assert kept == len(c) or room == min(longest, reserve)


def test_the_longest_answer_counts_references_and_the_pads_between_them(
    tokenizer: TaskTokenizer, examples_of: Examples
) -> None:
    several = [[words(1), words(2), words(1)], [], [words(3)]]
    examples = examples_of(("", "", words(1)), ("", "", words(2)), ("", "", words(3)), references=several)
    assert longest_answer(examples, tokenizer) == 6
    assert longest_answer(examples.slice(1, 1), tokenizer) == 2
    assert longest_answer(examples.slice(0, 0), tokenizer) == 0
    assert assemble_prompts(examples, tokenizer, 60, 5)[1] == 6


def test_a_question_without_room_for_an_answer_is_an_error(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    examples = examples_of(("", words(1), words(1)), ("", words(6), words(1)), task="woz.en")
    with pytest.raises(DataError, match=r"1 of 2 examples in the test set of woz\.en.*[\s\S]*woz\.en-1: question"):
        assemble_prompts(examples, tokenizer, 7, reserve=1)
    fits, _ = assemble_prompts(examples, tokenizer, 8, reserve=1)
    assert fits.num_rows == 2


def test_a_task_without_token_is_an_error(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    for build in (lambda e: assemble(e, tokenizer, 50), lambda e: assemble_prompts(e, tokenizer, 50, 1)):
        with pytest.raises(ModelError, match=r"'ssst'.*Did you mean 'sst'"):
            build(examples_of(("a", "b", "c"), task="ssst"))


@given(rows=rows, data=st.data(), max_length=st.integers(8, 40))
def test_with_answers_changes_only_the_answers(
    tokenizer: TaskTokenizer,
    examples_of: Examples,
    rows: list[tuple[str, str, str]],
    data: st.DataObject,
    max_length: int,
) -> None:
    table, _ = assemble(examples_of(*rows), tokenizer, max_length)
    answers = data.draw(st.lists(text, min_size=table.num_rows, max_size=table.num_rows))
    other = with_answers(table, answers, tokenizer, max_length)
    assert other.schema == TOKENS
    kept = ["prompt_length", "gen", "task", "sample_id", "origin"]
    assert other.select(kept) == table.select(kept)
    for before, after, answer in zip(table.to_pylist(), other.to_pylist(), answers, strict=True):
        split = before["prompt_length"]
        assert after["ids"][:split] == before["ids"][:split]
        ids = tokenizer.encode(answer)
        assert after["ids"][split:] == ids[: max_length - split - 1], (
            "the beginning of the answer, as much as fits together with GEN"
        )
        assert len(after["ids"]) + 1 <= max_length


def test_with_the_true_answers_the_table_is_unchanged(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    """Including examples with a truncated context or an empty answer."""
    rows = [(CONTEXT, QUESTION, ANSWER), (words(30), "", words(3)), ("", "", ""), (words(9), words(2), "")]
    table, dropped = assemble(examples_of(*rows), tokenizer, 12)
    assert dropped == []
    assert with_answers(table, [answer for *_, answer in rows], tokenizer, 12) == table
    with pytest.raises(ValueError, match="zip"):
        with_answers(table, ["one"], tokenizer, 12)


def test_stored_examples_differ_only_in_id_and_origin(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    real, _ = assemble(examples_of((CONTEXT, QUESTION, ANSWER), ("", "area", "north")), tokenizer, 50)
    stored = as_stored(real, stage=2)
    assert stored.schema == TOKENS
    assert stored["origin"].to_pylist() == ["stored", "stored"]
    assert stored["sample_id"].to_pylist() == ["replay-2-0", "replay-2-1"]
    unchanged = ["ids", "prompt_length", "gen", "task"]
    assert stored.select(unchanged) == real.select(unchanged)
    assert real["origin"].to_pylist() == ["real", "real"]
    assert concatenated(real, stored).schema == TOKENS
    assert as_stored(real.slice(0, 0), 1).num_rows == 0


def test_too_many_dropped_examples_are_refused_and_the_first_shown() -> None:
    dropped = [Dropped(f"woz.en-{i}", f"too long by {i}") for i in range(5)]
    refuse_if_many(dropped, 500, 0.01, "woz.en train")
    refuse_if_many([], 0, 0.0, "nothing")
    with pytest.raises(DataError) as caught:
        refuse_if_many(dropped, 499, 0.01, "woz.en train")
    message = str(caught.value)
    assert "5 of 499 examples in woz.en train" in message
    assert "1.0%" in message
    assert "woz.en-2: too long by 2" in message
    assert "woz.en-3" not in message
    assert "2 more" in message


def test_empty_input_and_concatenation(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    empty, dropped = assemble(examples_of(), tokenizer, 50)
    assert (empty.num_rows, empty.schema, dropped) == (0, TOKENS, [])
    one, _ = assemble(examples_of(("cheap", "north", "food")), tokenizer, 50)
    two, _ = assemble(examples_of(("", "area", ""), task="woz.en"), tokenizer, 50)
    pool = concatenated(one, empty, two)
    assert pool["task"].to_pylist() == ["sst", "woz.en"]
    assert pool["ids"].num_chunks == 1
    lengths = sequence_lengths(pool)
    assert lengths.dtype == np.int64
    assert lengths.tolist() == [len(ids) for ids in pool["ids"].to_pylist()]
