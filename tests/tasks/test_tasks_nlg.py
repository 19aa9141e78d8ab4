"""E2E and RNNLG: small files, and equality with the files that the reference implementations trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.registry import TASKS, load
from ray_l4.tasks.rows import Split

Write = Callable[..., Path]
QUESTION = "what is the natural language form ?"
BANNER = "#####\n# Copyright [C] #\n"
RECORDS = [["inform(name='x')", "x is here", "x -s  place ."], ["?confirm(area=y)", "you said y ?", "y ?"]]
REST = TaskConfig(name="rnnlg.rest", train="all", test="all")
E2E = TaskConfig(name="e2enlg", train="all", test="all")
RNNLG = [name for name in TASKS if name.startswith("rnnlg.")]

Triple = tuple[str, str, tuple[str, ...]]


def triples(table: pa.Table) -> list[Triple]:
    return [(row["context"], row["question"], tuple(row["references"])) for row in table.to_pylist()]


def test_rnnlg_training_has_both_sentences_one_after_the_other(write: Write, data: DataConfig) -> None:
    write("rnnlg/restaurant/train.json.gz", BANNER + json.dumps(RECORDS))
    table = load(REST, "train", data)
    assert triples(table) == [
        ("inform(name='x')", QUESTION, ("x is here",)),
        ("inform(name='x')", QUESTION, ("x -s  place .",)),
        ("?confirm(area=y)", QUESTION, ("you said y ?",)),
        ("?confirm(area=y)", QUESTION, ("y ?",)),
    ]
    assert table.column("sample_id").to_pylist() == ["0-0", "0-1", "1-0", "1-1"]


@pytest.mark.parametrize(("split", "name"), [("test", "test.json"), ("dev", "valid.json")])
def test_rnnlg_test_has_both_sentences_as_references(split: Split, name: str, write: Write, data: DataConfig) -> None:
    write(f"rnnlg/restaurant/{name}", json.dumps(RECORDS))
    table = load(REST, split, data)
    assert table.column("references").to_pylist() == [record[1:] for record in RECORDS]
    assert table.column("answer").to_pylist() == ["x is here", "you said y ?"]


def test_rnnlg_bad_records_are_located(write: Write, data: DataConfig, lenient: DataConfig) -> None:
    write("rnnlg/restaurant/test.json", BANNER + json.dumps([*RECORDS, ["act", "only one"]]))
    with pytest.raises(DataError, match=r"test.json, record 2: expected \[dialogue act, first sentence"):
        load(REST, "test", data)
    assert load(REST, "test", lenient).num_rows == 2


def test_rnnlg_errors_count_lines_with_the_banner(write: Write, data: DataConfig) -> None:
    write("rnnlg/restaurant/test.json", BANNER + "[\n  oops]")
    with pytest.raises(DataError, match="not JSON at line 4, column 3"):
        load(REST, "test", data)
    write("rnnlg/restaurant/test.json", BANNER)
    with pytest.raises(DataError, match="is empty"):
        load(REST, "test", data)


def test_each_domain_has_its_folder(write: Write, data: DataConfig) -> None:
    for folder in ("restaurant", "hotel", "tv", "laptop"):
        write(f"rnnlg/{folder}/test.json", json.dumps([[folder, "a", "b"]]))
    found = [load(TaskConfig(name=name), "test", data).column("context").to_pylist() for name in RNNLG]
    assert found == [["restaurant"], ["hotel"], ["tv"], ["laptop"]]


def test_e2e_text_is_verbatim(write: Write, data: DataConfig) -> None:
    write("e2e/trainset.csv", 'mr,ref\n"name[Café X], food[Thai]","Big  blanks, ""quoted""."\nname[Y],Y is.\n')
    table = load(E2E, "train", data)
    assert triples(table) == [
        ("name[Café X], food[Thai]", QUESTION, ('Big  blanks, "quoted".',)),
        ("name[Y]", QUESTION, ("Y is.",)),
    ]
    assert table.column("sample_id").to_pylist() == ["0", "1"]


def test_e2e_bad_rows_and_columns_are_located(write: Write, data: DataConfig, lenient: DataConfig) -> None:
    write("e2e/trainset.csv", "mr,ref\nname[Y],Y is.\nname[Z],\nshort\nname[A],A\n")
    with pytest.raises(DataError, match=r"trainset.csv, line 3: mr or ref is empty"):
        load(E2E, "train", data)
    assert load(E2E, "train", lenient).column("sample_id").to_pylist() == ["0", "3"]
    write("e2e/testset_w_refs.csv", "mrs,ref\na,b\n")
    with pytest.raises(DataError, match=r"no column 'mr'. Did you mean 'mrs'"):
        load(E2E, "test", data)


def test_a_raw_file_that_is_not_there_is_named(data: DataConfig) -> None:
    with pytest.raises(DataError, match=r"e2e: no such folder; expected it to contain devset.csv"):
        load(E2E, "dev", data)


def reference(shared_data: Path, task: str, split: Split) -> list[Triple]:
    """Examples that the reference implementations trained or tested on, read from their converted files."""
    config = TaskConfig(name=task, path=shared_data / "processed_l2kd", train="all", test="all")
    return triples(load(config, split, DataConfig()))


@pytest.mark.shared_data
@pytest.mark.parametrize("task", RNNLG)
@pytest.mark.parametrize("split", ["train", "test"])
def test_rnnlg_equals_the_reference_in_order(task: str, split: Split, shared_data: Path, real: DataConfig) -> None:
    ours = triples(load(TaskConfig(name=task, train="all", test="all"), split, real))
    theirs = reference(shared_data, task, split)
    if (task, split) == ("rnnlg.laptop", "train"):  # a random half, in random order
        assert (len(ours), len(theirs)) == (15888, 7944)
        assert not Counter(theirs) - Counter(ours)
    else:
        assert ours == theirs


@pytest.mark.shared_data
@pytest.mark.parametrize(("split", "rows", "sampled"), [("train", 42061, 6000), ("test", 4693, 2000)])
def test_e2e_contains_the_reference(split: Split, rows: int, sampled: int, shared_data: Path, real: DataConfig) -> None:
    ours, theirs = triples(load(E2E, split, real)), reference(shared_data, "e2enlg", split)
    assert (len(ours), len(theirs)) == (rows, sampled)
    assert not Counter(theirs) - Counter(ours)


@pytest.mark.shared_data
@pytest.mark.parametrize("task", [*RNNLG, "e2enlg"])
def test_the_papers_sizes_come_out(task: str, real: DataConfig) -> None:
    config = TaskConfig(name=task)
    assert load(config, "train", real).num_rows == TASKS[task].train
    assert load(config, "test", real).num_rows == TASKS[task].test
