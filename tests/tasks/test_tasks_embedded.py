"""The embedded tasks: disjoint splits, answers that follow from contexts, and low scores for guesses."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from random import Random

import pyarrow as pa
import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.metrics.registry import Item, score
from ray_l4.tasks import embedded
from ray_l4.tasks.embedded import GRAMMARS, SPLIT_OF_BUCKET, rest, split_of, sql, woz
from ray_l4.tasks.embedded.grammar import draw_kept
from ray_l4.tasks.registry import TASKS, check_files, load, metric_of
from ray_l4.tasks.rows import Split

MINI = list(GRAMMARS)


def examples(name: str, split: Split = "train", seed: int = 0, count: int | str = "paper") -> list[dict[str, str]]:
    task = TaskConfig(name=name, train=count, test=count)  # type: ignore[arg-type]
    table: pa.Table = load(task, split, DataConfig(seed=seed))
    return table.to_pylist()


@pytest.mark.parametrize("name", MINI)
def test_default_sizes(name: str) -> None:
    assert [len(examples(name, split)) for split in ("train", "dev", "test")] == [600, 100, 100]  # type: ignore[arg-type]
    assert (TASKS[name].train, TASKS[name].test) == (600, 100)


@pytest.mark.parametrize("name", MINI)
def test_a_larger_number_of_examples_extends_a_smaller_one(name: str) -> None:
    small, large = examples(name, count=7), examples(name, count=2500)
    assert (len(small), len(large)) == (7, 2500)
    assert large[:7] == small


@pytest.mark.parametrize("split", ["train", "test"])
def test_more_examples_than_can_be_drawn_are_refused_with_the_number_of_different_ones(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MOST", 2000)
    different = len({row["context"] for row in examples("mini.woz", split, count=2000)})
    assert different < 2000
    message = rf"mini.woz \({split}\): 2001 examples requested; at most 2000 can be drawn, of which {different} have"
    task = TaskConfig.model_validate({"name": "mini.woz", split: 2001})
    for refuse in (lambda: check_files(task, DataConfig()), lambda: load(task, split, DataConfig())):
        with pytest.raises(DataError, match=message):
            refuse()


@pytest.mark.parametrize("name", MINI)
def test_the_seed_decides(name: str) -> None:
    assert examples(name, seed=3) == examples(name, seed=3)
    assert examples(name, seed=3) != examples(name, seed=4)


@pytest.mark.parametrize("name", MINI)
@pytest.mark.parametrize("seed", [0, 1, 17])
def test_splits_share_no_context(name: str, seed: int) -> None:
    splits: list[Split] = ["train", "dev", "test"]
    contexts = [{row["context"] for row in examples(name, split, seed, 1000)} for split in splits]
    assert not contexts[0] & contexts[1]
    assert not contexts[0] & contexts[2]
    assert not contexts[1] & contexts[2]


def test_a_context_belongs_to_one_split_and_an_eighth_goes_to_test() -> None:
    splits = Counter(split_of(0, f"context {n}") for n in range(8000))
    assert set(splits) == {"train", *SPLIT_OF_BUCKET.values()}
    assert 850 < splits["test"] < 1150
    assert 850 < splits["dev"] < 1150


@pytest.mark.parametrize("name", MINI)
def test_the_context_determines_the_answer(name: str) -> None:
    answers = defaultdict(set)
    for row in examples(name, count=4000):
        answers[row["context"]].add(row["answer"])
    assert all(len(found) == 1 for found in answers.values())
    assert len(answers) > 400


def overlap(one: str, other: str) -> float:
    """Bag-of-words F1."""
    first, second = Counter(one.split()), Counter(other.split())
    return 2 * sum((first & second).values()) / (first.total() + second.total())


@pytest.mark.parametrize("name", MINI)
def test_the_most_frequent_answer_is_a_bad_guess(name: str) -> None:
    guess, _ = Counter(row["answer"] for row in examples(name)).most_common(1)[0]
    golds = [row["answer"] for row in examples(name, "test", count=500)]
    assert 100 * sum(gold == guess for gold in golds) / len(golds) < 15
    assert 100 * sum(overlap(guess, gold) for gold in golds) / len(golds) < 65  # words of the format itself


@pytest.mark.parametrize("name", MINI)
def test_gold_answers_score_full_marks_and_a_constant_does_not(name: str) -> None:
    rows = examples(name, "test")

    def scored(predictions: list[str]) -> float:
        items = [
            Item(prediction, tuple(row["references"]), row["sample_id"], row["meta"])
            for prediction, row in zip(predictions, rows, strict=True)
        ]
        return score(metric_of(TaskConfig(name=name)), items)[TASKS[name].metric]

    assert scored([row["answer"] for row in rows]) == pytest.approx(100)
    assert scored([rows[0]["answer"]] * len(rows)) < 50


def test_the_vocabulary_is_small_and_lower_case_and_contexts_are_short() -> None:
    rows = [row for name in MINI for row in examples(name, count=3000)]
    texts = [row[field] for row in rows for field in ("context", "question", "answer")]
    assert all(text == text.lower() for text in texts)
    assert len({word for text in texts for word in re.findall(r"\w+", text)}) < 300
    assert max(len(row["context"].split()) for row in rows) < 30


def test_mini_woz_is_made_of_dialogues_whose_turns_follow_each_other() -> None:
    rows = examples("mini.woz", count=600)
    turns = defaultdict(list)
    for row in rows:
        dialogue, _, turn = row["sample_id"].rpartition("_")
        turns[dialogue].append(int(turn))
    assert list(turns) == [f"en_{number}" for number in range(len(turns))]
    complete = list(turns.values())[:-1]
    assert all(numbers == list(range(len(numbers))) for numbers in turns.values())
    assert {len(numbers) for numbers in complete} == {2, 3}
    answers = {row["answer"] for row in rows}
    assert "none" in answers
    assert any(re.fullmatch(r"; \w+", answer) for answer in answers)
    assert any(re.fullmatch(r"price: \w+, food: \w+, area: \w+; \w+", answer) for answer in answers)


def test_mini_woz_reports_only_what_changes() -> None:
    state: dict[str, str] = {}
    changes = 0
    for row in examples("mini.woz", count=600):
        if row["sample_id"].endswith("_0"):
            state = {}
        informs = dict(part.split(": ") for part in row["answer"].split(";")[0].split(", ") if ": " in part)
        assert all(state.get(slot) != value for slot, value in informs.items())
        changes += any(slot in state for slot in informs)
        state |= informs
    assert changes > 20


def test_mini_sql_answers_are_written_from_their_meta() -> None:
    for row in examples("mini.sql", count=300):
        meta = json.loads(row["meta"])
        header, query = meta["header"], meta["sql"]
        assert row["context"].startswith(f"the table has columns {', '.join(header)}-- ")
        assert len(set(header)) == len(header) == 4
        words = [
            "select",
            *["max", "min", "count", "sum", "avg"][query["agg"] - 1 : query["agg"]],
            header[query["sel"]],
        ]
        assert row["answer"].startswith(f"{' '.join(words)} from table where ")
        parts = [f"{header[column]} {'=><'[op]} {value}" for column, op, value in query["conds"]]
        assert row["answer"].split(" where ")[1] == " and ".join(parts)
        assert all(str(value) in row["context"].split() for _, _, value in query["conds"])


def test_mini_sql_avoids_the_letters_at_which_the_metric_cuts() -> None:
    words = [*sql.TEXTS, *sql.NUMERIC, *sql.NUMBERS, *(value for values in sql.TEXTS.values() for value in values)]
    assert not [word for word in words if "and" in word or "where" in word]


def test_mini_rest_names_every_slot_of_its_act() -> None:
    for row in examples("mini.rest", count=300):
        act, _, given = row["context"].rstrip(")").partition("(")
        values = [part.split("=")[1].strip("'") for part in given.split(";")]
        assert act in rest.WORDINGS
        assert all(value in row["answer"] for value in values)
    assert {len(wordings) for wordings in rest.WORDINGS.values()} <= {4, 5, 6}
    assert len(rest.NAMES) == 12


def test_every_kind_of_turn_and_act_occurs() -> None:
    contexts = " | ".join(row["context"] for row in examples("mini.woz"))
    assert all(f"{slot} -- " in contexts for slot in woz.VALUES)
    assert all(value in contexts for values in woz.VALUES.values() for value in values)
    acts = Counter(row["context"].split("(")[0] for row in examples("mini.rest"))
    assert min(acts[act] for act in rest.WORDINGS) > 60


def test_a_split_that_keeps_nothing_is_an_error_not_a_hang() -> None:
    with pytest.raises(DataError, match=r"use another data.seed"):
        next(rest.rows(Random(0), lambda context: False))
    assert draw_kept(lambda: ("a", 1), lambda context: context == "a") == ("a", 1)
