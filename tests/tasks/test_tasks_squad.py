from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.registry import load

Write = Callable[..., Path]


def document(*questions: dict[str, Any]) -> dict[str, Any]:
    """One paragraph per question, as the reference implementations' converter writes it."""
    entries = []
    for number, question in enumerate(questions):
        entries.append({"title": "dummy", "paragraphs": [{"context": f"c{number}", "qas": [question]}]})
    return {"data": entries}


def qa(*answers: str, **extra: Any) -> dict[str, Any]:
    texts = [{"answer_start": None, "text": text} for text in answers]
    return {"question": "q", "answers": texts, **extra}


@pytest.fixture
def task(tmp_path: Path) -> Callable[[str], TaskConfig]:
    return lambda name: TaskConfig(name=name, path=tmp_path / "squad", train="all", test="all")


Task = Callable[[str], TaskConfig]


def test_documents_paragraphs_and_questions_are_flattened(write: Write, task: Task, data: DataConfig) -> None:
    two = {"context": "shared", "qas": [qa("a", "b", id="x"), qa("c", id="y")]}
    content = {"version": 2, "data": [{"paragraphs": [two, {"context": "other", "qas": [qa("d", id="z")]}]}]}
    write("squad/ag_to_squad-train-v2.0.json.gz", content)
    rows = load(task("ag"), "train", data).to_pylist()
    assert [(row["context"], row["references"], row["sample_id"]) for row in rows] == [
        ("shared", ["a", "b"], "x"),
        ("shared", ["c"], "y"),
        ("other", ["d"], "z"),
    ]


def test_an_impossible_question_has_one_empty_answer(write: Write, task: Task, data: DataConfig) -> None:
    write("squad/ag_to_squad-train-v2.0.json", document(qa(is_impossible=True), qa("a", is_impossible=False)))
    assert load(task("ag"), "train", data).column("references").to_pylist() == [[""], ["a"]]


def test_a_question_without_answers_is_a_bad_record(
    write: Write, task: Task, data: DataConfig, lenient: DataConfig
) -> None:
    write("squad/ag_to_squad-train-v2.0.json", document(qa("a"), qa(), {"question": "q"}, qa("b")))
    with pytest.raises(DataError, match=r"data\[1\]: not SQuAD 2.0: .*no answers, and is_impossible is not true"):
        load(task("ag"), "train", data)
    assert load(task("ag"), "train", lenient).column("context").to_pylist() == ["c0", "c3"]


@pytest.mark.parametrize("blank", ["", "  ", "\u200b"])
def test_a_blank_text_among_the_answers_is_a_bad_record(
    blank: str, write: Write, task: Task, data: DataConfig, lenient: DataConfig
) -> None:
    write("squad/ag_to_squad-train-v2.0.json", document(qa("a"), qa("b", blank), qa(is_impossible=True)))
    with pytest.raises(DataError, match=r"data\[1\]: .*answers contains a blank text"):
        load(task("ag"), "train", data)
    assert load(task("ag"), "train", lenient).column("references").to_pylist() == [["a"], [""]]


def test_the_other_questions_of_a_paragraph_are_read(write: Write, task: Task, lenient: DataConfig) -> None:
    paragraph = {"context": "shared", "qas": [qa("a"), qa("b", " "), qa(), qa("c"), qa("d")]}
    write("squad/ag_to_squad-train-v2.0.json", {"data": [{"paragraphs": [paragraph]}]})
    assert load(task("ag"), "train", lenient).column("answer").to_pylist() == ["a", "c", "d"]


def test_ids_that_are_missing_or_repeat_become_unique(write: Write, task: Task, data: DataConfig) -> None:
    write("squad/ag_to_squad-train-v2.0.json", document(qa("a", id="x"), qa("a"), qa("a", id="x"), qa("b", id="x")))
    assert load(task("ag"), "train", data).column("sample_id").to_pylist() == ["x", "1", "x#2", "x#3"]


@pytest.mark.parametrize("content", [[], {"data": {}}, {"rows": []}])
def test_another_layout_is_an_error(content: Any, write: Write, task: Task, data: DataConfig) -> None:
    write("squad/ag_to_squad-train-v2.0.json", content)
    with pytest.raises(DataError, match="expected a JSON object with a list under 'data'"):
        load(task("ag"), "train", data)


def test_a_missing_file_names_the_nearest(write: Write, task: Task, data: DataConfig) -> None:
    write("squad/woz.en_to_squad-train-v2.0.json", document(qa("a")))
    with pytest.raises(
        DataError, match=r"no file woz.en_to_squad-test-v2.0.json .*Did you mean 'woz.en_to_squad-train"
    ):
        load(task("woz.en"), "test", data)


def test_wozs_side_file_is_aligned_after_sorting_by_id(write: Write, task: Task, data: DataConfig) -> None:
    # Numeric ids are sorted as numbers; a missing id counts as 0.
    write("squad/woz.en_to_squad-test-v2.0.json", document(qa("x", id=10), qa("y", id=9), qa("z")))
    write("squad/woz.en_answers.json", [["en_0_0", "gold z"], ["en_0_1", "gold y"], ["en_1_0", "gold x"]])
    rows = load(task("woz.en"), "test", data).to_pylist()
    assert [(row["sample_id"], row["context"], row["references"]) for row in rows] == [
        ("en_0_0", "c2", ["gold z"]),
        ("en_0_1", "c1", ["gold y"]),
        ("en_1_0", "c0", ["gold x"]),
    ]


def test_wikisqls_side_file_gives_the_metric_its_query(write: Write, task: Task, data: DataConfig) -> None:
    write("squad/wikisql_to_squad-test-v2.0.json", document(qa("x", id="b"), qa("y", id="a")))
    sql = {"sel": 0, "agg": 0, "conds": []}
    side = [
        {"sql": sql, "header": ["A"], "answer": "select a from table", "table": {}},
        {"sql": {**sql, "agg": 3}, "header": ["B"], "answer": "select count b from table", "table": {}},
    ]
    write("squad/wikisql_answers.json", side)
    rows = load(task("wikisql"), "test", data).to_pylist()
    assert [(row["context"], row["answer"]) for row in rows] == [
        ("c1", "select a from table"),
        ("c0", "select count b from table"),
    ]
    assert [json.loads(row["meta"]) for row in rows] == [
        {"sql": record["sql"], "header": record["header"]} for record in side
    ]


def test_side_files_are_for_the_test_split_alone(write: Write, task: Task, data: DataConfig) -> None:
    write("squad/woz.en_to_squad-train-v2.0.json", document(qa("x", id=2), qa("y", id=1)))
    write("squad/woz.en_answers.json", [["en_0_0", "gold"]])
    assert load(task("woz.en"), "train", data).column("answer").to_pylist() == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("woz.en", [["en_0_0", "x"]], "contains 1 answers for 2 test examples"),
        ("woz.en", [["en_0_0", "x"], "en_0_1"], r"entry 1: expected \[turn id, answer\]"),
        ("wikisql", [{"sql": {}, "header": [], "answer": "x"}, {"sql": {}, "answer": "x"}], "entry 1: no key 'header'"),
    ],
)
def test_a_side_file_that_does_not_fit(
    name: str, side: Any, message: str, write: Write, task: Task, data: DataConfig
) -> None:
    write(f"squad/{name}_to_squad-test-v2.0.json", document(qa("x", id=0), qa("y", id=1)))
    write(f"squad/{name}_answers.json", side)
    with pytest.raises(DataError, match=message):
        load(task(name), "test", data)


def test_wikisql_without_a_side_file_cannot_be_scored(write: Write, task: Task, data: DataConfig) -> None:
    write("squad/wikisql_to_squad-test-v2.0.json", document(qa("x", id=0)))
    with pytest.raises(DataError, match=r"no file wikisql_answers.json"):
        load(task("wikisql"), "test", data)
