"""Custom tasks: every kind of file, column names, and files that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import Columns, Splits, TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.files import MissingFileError
from ray_l4.tasks.prepare import summary
from ray_l4.tasks.registry import check_files, load
from ray_l4.tasks.schema import EXAMPLES

Write = Callable[..., Path]
RECORDS = [{"context": "c0", "question": "q0", "answer": "a0"}, {"context": "c1", "question": "q1", "answer": "a1"}]


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


Own = Callable[..., TaskConfig]


def put(kind: str, write: Write, tmp_path: Path) -> None:
    """Write ``RECORDS`` as a file of this kind."""
    if kind == "parquet":
        (tmp_path / "own").mkdir()
        pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "own" / "train.parquet")
    elif "csv" in kind:
        write(f"own/train.{kind}", "context,question,answer\nc0,q0,a0\nc1,q1,a1\n")
    else:
        write(f"own/train.{kind}", lines(*RECORDS))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
def test_every_kind_of_file_gives_the_same_table(
    kind: str, write: Write, tmp_path: Path, own: Own, data: DataConfig
) -> None:
    put(kind, write, tmp_path)
    rows = load(own(), "train", data).to_pylist()
    assert [(row["context"], row["question"], row["answer"], row["sample_id"], row["task"]) for row in rows] == [
        ("c0", "q0", "a0", "0", "mine"),
        ("c1", "q1", "a1", "1", "mine"),
    ]


def test_columns_an_id_and_a_constant_question(write: Write, own: Own, data: DataConfig) -> None:
    write("own/test.csv", "text,label,key\nhello,World,7\nbye,Sports,9\n")
    columns = Columns(context="text", answer="label", id="key")
    rows = load(own(columns=columns, question="Which topic?"), "test", data).to_pylist()
    assert [(row["context"], row["question"], row["answer"], row["sample_id"]) for row in rows] == [
        ("hello", "Which topic?", "World", "7"),
        ("bye", "Which topic?", "Sports", "9"),
    ]


def test_an_id_may_be_a_number(write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", lines({**RECORDS[0], "n": 12}))
    assert load(own(columns=Columns(id="n")), "train", data).column("sample_id").to_pylist() == ["12"]


def test_several_right_answers(write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", lines({**RECORDS[0], "answer": ["yes", "yes, it is"]}, RECORDS[1]))
    table = load(own(), "train", data)
    assert table.column("references").to_pylist() == [["yes", "yes, it is"], ["a1"]]
    assert table.column("answer").to_pylist() == ["yes", "a1"]


def test_a_file_with_all_columns_is_read_as_it_is(write: Write, own: Own, data: DataConfig) -> None:
    row = {**RECORDS[0], "references": ["a0", "b"], "sample_id": "en_0_0", "meta": "{}", "task": "other"}
    write("own/train.jsonl", lines(row))
    assert load(own(), "train", data).to_pylist() == [{**row, "task": "mine"}]
    assert set(row) == set(EXAMPLES.names)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"context": "c", "question": "q"}, "answer is missing"),
        ({"context": "c", "question": "q", "answer": "  "}, "answer is blank"),
        ({"context": "c", "question": "q", "answer": 3}, "answer is of type int"),
        ({"context": None, "question": "q", "answer": "a"}, "context is missing"),
        ({"context": "c", "question": "q", "answer": "\u200b\u00a0"}, "answer is blank"),
        ({"context": "c", "question": "q", "answer": ["a", ""]}, "answer contains a blank text"),
        ({"context": "c", "question": "q", "answer": ["\ufeff"]}, "answer contains a blank text"),
        ({"context": "\u2060", "question": " ", "answer": "a"}, "context and question are both blank"),
        ([1], "expected a JSON object, found list"),
    ],
)
def test_bad_records_are_located(
    record: Any, reason: str, write: Write, own: Own, data: DataConfig, lenient: DataConfig
) -> None:
    write("own/train.jsonl", lines(*RECORDS) + "\n" + lines(record))
    with pytest.raises(DataError, match=rf"train.jsonl, line 4: {reason}"):
        load(own(), "train", data)
    assert load(own(), "train", lenient).num_rows == 2


def test_bad_lines_and_short_csv_rows_are_located(write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", "{oops\n" + lines(*RECORDS))
    with pytest.raises(DataError, match=r"train.jsonl, line 1: not JSON"):
        load(own(), "train", data)
    write("own/test.csv", "context,question,answer\nc0,q0,a0\nshort\n")
    with pytest.raises(DataError, match=r"test.csv, line 3: question is missing"):
        load(own(), "test", data)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"context": "c", "question": "q", "answer": "a", "answer": "b"}', "'answer' occurs more than once"),
        ("[" * 100_000, "maximum recursion depth"),
        ('{"n": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
    ids=["key twice", "too deep", "too large"],
)
def test_a_line_that_python_or_json_would_misread(
    line: str, reason: str, write: Write, own: Own, data: DataConfig
) -> None:
    write("own/train.jsonl", f"{lines(*RECORDS)}{line}\n")
    with pytest.raises(DataError, match=rf"train.jsonl, line 3: {reason}"):
        load(own(), "train", data)


@pytest.mark.parametrize("before", ["\n", "\ufeff", "\ufeff\n \n", "\u200b\n\u00a0\u2060\n"], ids=ascii)
def test_blank_lines_and_a_mark_at_the_beginning(before: str, write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", before + lines(*RECORDS) + "\ufeff\n")
    assert load(own(), "train", data).num_rows == 2


@pytest.mark.parametrize("content", ["", "\n \n", "\u200b\n\ufeff"], ids=ascii)
def test_a_file_of_blank_lines_is_empty(content: str, write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", content)
    with pytest.raises(DataError, match=r"train\.jsonl is empty; expected one record per line"):
        load(own(), "train", data)


def test_splits_may_have_names_of_their_own(write: Write, own: Own, data: DataConfig) -> None:
    write("own/small.jsonl", lines(*RECORDS))
    write("own/validation.csv", "context,question,answer\nc,q,a\n")
    task = own(splits=Splits(train="small", test="validation"))
    assert (load(task, "train", data).num_rows, load(task, "test", data).num_rows) == (2, 1)
    assert load(task, "dev", data).num_rows == 1


def test_a_file_of_only_broken_lines_shows_them(write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", "oops\n")
    with pytest.raises(DataError, match=r"1 of 1 records cannot be used(.|\n)*line 1: not JSON"):
        load(own(), "train", data)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_missing_column_names_the_nearest(
    kind: str, write: Write, tmp_path: Path, own: Own, data: DataConfig
) -> None:
    put(kind, write, tmp_path)
    with pytest.raises(DataError, match=rf"train.{kind}: no column 'answers'. Did you mean 'answer'"):
        load(own(columns=Columns(answer="answers")), "train", data)
    with pytest.raises(DataError, match="no column 'key'"):
        load(own(columns=Columns(id="key")), "train", data)


def test_no_file_two_files_and_no_folder(write: Write, own: Own, data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"Task 'mine': no folder .*expected it to contain train.jsonl.*If it has moved, give"
    ):
        load(own(), "train", data)
    write("own/training.jsonl", lines(*RECORDS))
    with pytest.raises(DataError, match=r"no train data in .*; expected train.jsonl.*found training.jsonl"):
        load(own(), "train", data)
    write("own/train.jsonl", lines(*RECORDS))
    write("own/train.csv", "context,question,answer\nc,q,a\n")
    with pytest.raises(DataError, match=r"contains train.jsonl and train.csv; keep one file"):
        load(own(), "train", data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", b"", "is empty"),
        ("train.csv", b"", "is empty"),
        ("train.csv", b"context,question,answer\n", "contains no usable records"),
        ("train.jsonl", b'{"context": "caf\xe9"}\n', r"not UTF-8 at byte 16 \(line 1\)"),
        ("train.parquet", b"no parquet", "cannot be read as Parquet"),
    ],
)
def test_unreadable_files(name: str, content: bytes, message: str, write: Write, own: Own, data: DataConfig) -> None:
    write(f"own/{name}", content)
    with pytest.raises(DataError, match=message):
        load(own(), "train", data)


def test_duplicate_ids_are_refused(write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.csv", "context,question,answer,id\nc,q,a,x\nc,q,a,y\nc,q,a,x\n")
    message = "'x' occurs twice, at train.csv, line 2 and at train.csv, line 4"
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        load(own(columns=Columns(id="id")), "train", data)


def test_a_csv_record_with_more_fields_than_columns_is_refused(tmp_path: Path) -> None:
    """An unquoted comma would silently shift every later field."""
    (tmp_path / "train.csv").write_text("context,question,answer\na,b,c\nd, and e,f,g\n", encoding="utf-8")
    task = TaskConfig(name="mine", path=tmp_path, metric="em")
    with pytest.raises(DataError, match=r"train\.csv, line 3: more fields than the header's 3 columns.*double quotes"):
        load(task, "train", DataConfig())


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_is_no_folder_of_splits(split: Any, write: Write, tmp_path: Path, own: Own, data: DataConfig) -> None:
    """Otherwise the run would be scored on the examples that it has learned."""
    file = write("own/train.jsonl", lines(*RECORDS))
    task = own().model_copy(update={"path": file})
    for read in (lambda: load(task, split, data), lambda: check_files(task, data), lambda: summary(task, data)):
        with pytest.raises(MissingFileError, match=r"train.jsonl is a file; expected the folder that holds \w+.jsonl"):
            read()
