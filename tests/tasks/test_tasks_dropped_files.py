"""Files that a person puts into the inbox: read when they are whole, and only what is new in them."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_l4.config.stream import Columns
from ray_l4.store.inbox.assignments import take, waiting
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.inbox.places import inbox_of, shelf_folder
from ray_l4.store.inbox.segments import read_segment, segments_in
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.dropped_files import SETTLED, SETTLED_IN_A_LINE, DroppedFiles
from ray_l4.tasks.inbox_tasks import inbox_tasks, stage_task
from tests.store.inbox_fixtures import KNOWN, extend, new_run

AGE = 2 * SETTLED_IN_A_LINE


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return new_run(tmp_path / "run")


def collect(run: RunDirectory, files: DroppedFiles | None = None) -> list[str]:
    """What is wrong after one look."""
    experiment = run.experiment()
    files = files or DroppedFiles(run, Inbox(run.path))
    return files.collect(inbox_tasks(run, experiment), experiment.data)


def drop(run: RunDirectory, name: str, data: bytes, age: float = AGE, task: str = KNOWN) -> Path:
    """Put a file there that was written ``age`` seconds ago."""
    path = inbox_of(run.path) / task / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age,) * 2)
    return path


def jsonl(*numbers: int) -> bytes:
    rows = [{"context": f"c{number}", "question": "q", "answer": "yes"} for number in numbers]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def contexts(run: RunDirectory, task: str = KNOWN, kind: str = "segments") -> list[str]:
    folder = shelf_folder(run.path, task, kind)
    return [one.context for segment in segments_in(folder) for one in read_segment(folder, segment)]


def parquet(rows: Sequence[dict[str, object]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", jsonl(1, 2)),
        ("two words.JSONL".lower(), jsonl(1, 2)),
        ("a.jsonl.gz", gzip.compress(jsonl(1, 2), mtime=0)),
        ("ä.csv", b"context,question,answer\nc1,q,yes\nc2,q,yes\n"),
        ("b.tsv", b"context\tquestion\tanswer\nc1\tq\tyes\nc2\tq\tyes\n"),
        ("c.parquet", parquet([{"context": f"c{n}", "question": "q", "answer": "yes"} for n in (1, 2)])),
    ],
)
def test_files_of_all_kinds_are_examples(run: RunDirectory, name: str, data: bytes) -> None:
    path = drop(run, name, data)
    assert collect(run) == []
    assert contexts(run) == ["c1", "c2"]
    assert path.read_bytes() == data
    assert collect(run) == []  # of a process that has not seen it yet
    assert waiting(run.path, KNOWN).examples == 2


def test_a_file_that_grows_gives_what_is_new_in_it(run: RunDirectory) -> None:
    files = DroppedFiles(run, Inbox(run.path))
    drop(run, "a.jsonl", jsonl(1))
    collect(run, files)
    drop(run, "a.jsonl", jsonl(1, 2))
    drop(run, "copy.jsonl", jsonl(2, 3))
    assert collect(run, files) == []
    assert contexts(run) == ["c1", "c2", "c3"]


def test_several_right_answers_and_chats_are_kept(run: RunDirectory) -> None:
    drop(run, "a.jsonl", json.dumps({"context": "c", "question": "q", "answer": ["yes", "y"]}).encode() + b"\n")
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "bye?"), ("assistant", "bye")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    drop(run, "b.jsonl", json.dumps(chat).encode() + b"\n")
    assert collect(run) == []
    folder = shelf_folder(run.path, KNOWN, "segments")
    first, second = (read_segment(folder, segment)[0] for segment in segments_in(folder))
    assert (first.answers, first.source, first.meta) == (("yes", "y"), "a.jsonl", "")
    assert (second.question, second.answers, "hello" in second.meta) == ("bye?", ("bye",), True)


def test_a_new_file_is_left_until_it_is_settled(run: RunDirectory) -> None:
    files = DroppedFiles(run, Inbox(run.path))
    drop(run, "a.jsonl", jsonl(1), age=0)
    drop(run, "b.jsonl", jsonl(2).rstrip(), age=SETTLED + 1)  # its last line has no end yet
    drop(run, "future.jsonl", jsonl(3), age=-1000)
    assert collect(run, files) == []
    assert contexts(run) == []
    for seen in files._seen.values():
        seen.since -= SETTLED  # as if so much time had passed
    collect(run, files)
    assert contexts(run) == ["c1", "c3"]
    for seen in files._seen.values():
        seen.since -= SETTLED_IN_A_LINE
    collect(run, files)
    assert contexts(run) == ["c1", "c3", "c2"]


@pytest.mark.parametrize(
    "name", [".a.jsonl", "a.jsonl~", "a.jsonl.part", "a.jsonl.tmp", "#a.jsonl#", "a.csv.crdownload"]
)
def test_temporary_files_are_ignored(run: RunDirectory, name: str) -> None:
    drop(run, name, jsonl(1))
    assert collect(run) == []
    assert contexts(run) == []


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.jsonl", jsonl(1) + b'{"context": "c2", "quest', "line 2: not JSON"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\xff\xfe", "UTF-16"),
        ("a.csv", b"context,answer\nc,a\n", "no column 'question'"),
        ("a.csv", b"context,question,answer\nc1,q,yes\nc2,q\n", "1 of 2 records cannot be used"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.jsonl.gz", gzip.compress(jsonl(1), mtime=0)[:-9], "cannot be read"),
        ("notes.txt", b"hello", "not read; expected *.jsonl"),
    ],
)
def test_a_broken_file_is_reported_and_nothing_of_it_is_taken(
    run: RunDirectory, name: str, data: bytes, why: str
) -> None:
    files = DroppedFiles(run, Inbox(run.path))
    path = drop(run, name, data)
    drop(run, "good.jsonl", jsonl(9))
    for _ in range(2):  # it is reported for as long as it is there
        (problem,) = collect(run, files)
        assert why in problem
        assert str(path) in problem
    assert contexts(run) == ["c9"]
    path.unlink()
    assert collect(run, files) == []


def test_a_broken_file_is_read_once_it_is_mended(run: RunDirectory) -> None:
    files = DroppedFiles(run, Inbox(run.path))
    drop(run, "a.jsonl", b"{")
    assert len(collect(run, files)) == 1
    drop(run, "a.jsonl", jsonl(1))
    assert collect(run, files) == []
    assert contexts(run) == ["c1"]


def test_a_file_in_no_folder_is_reported(run: RunDirectory) -> None:
    inbox_of(run.path).mkdir()
    (inbox_of(run.path) / "a.jsonl").write_bytes(jsonl(1))
    (problem,) = collect(run)
    assert "in no task's folder; move it into" in problem


def test_a_new_task_has_its_settings_and_tests(run: RunDirectory) -> None:
    drop(run, "task.yaml", b"metric: nf1\nquestion: Who?\ncolumns: {context: text, answer: label}\n", task="new")
    drop(run, "a.csv", b"text,label\nc1,yes\n", task="new")
    drop(run, "test.csv", b"text,label\nc2,no\n", task="new")
    drop(run, "test.jsonl", jsonl(5))  # of a task that has tests: left alone
    assert collect(run) == []
    assert (contexts(run, "new"), contexts(run, "new", "tests"), contexts(run)) == (["c1"], ["c2"], [])
    folder = shelf_folder(run.path, "new", "segments")
    assert read_segment(folder, segments_in(folder)[0])[0].question == "Who?"


def test_a_new_task_is_described_by_its_file_after_its_first_stage_too(run: RunDirectory) -> None:
    drop(run, "task.yaml", b"metric: nf1\nquestion: Who?\ncolumns: {context: text, answer: label}\n", task="new")
    drop(run, "a.csv", b"text,label\nc1,yes\nc2,no\n", task="new")
    assert collect(run) == []
    extend(run, take(run, ["new"]))
    drop(run, "b.csv", b"text,label\nc3,yes\n", task="new")
    assert collect(run) == []
    assert (contexts(run, "new"), waiting(run.path, "new").examples) == (["c1", "c2", "c3"], 1)
    folder = shelf_folder(run.path, "new", "segments")
    assert read_segment(folder, segments_in(folder)[-1])[0].question == "Who?"
    (given,) = take(run, ["new"])
    stage = stage_task(run, run.experiment(), given)
    assert (stage.metric, stage.question, stage.columns) == ("em", None, Columns()), "the metric is that of the run"


def test_a_folder_named_in_plain_letters_is_that_of_its_task(run: RunDirectory) -> None:
    drop(run, "a.jsonl", jsonl(1), task="my task")
    assert collect(run) == []
    assert contexts(run, "my task") == ["c1"]
