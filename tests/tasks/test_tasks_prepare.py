from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.prepare import prepare, summary
from ray_l4.tasks.registry import load, metric_of
from ray_l4.tasks.schema import EXAMPLES

Write = Callable[..., Path]
STREAM = [TaskConfig(name="mini.woz", train=20, test=5), TaskConfig(name="mini.sql", train=10, test=5)]


def test_prepared_tasks_read_back_as_ones_own_data(tmp_path: Path) -> None:
    data = DataConfig()
    written = prepare(STREAM, data, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == [
        f"{task}/{split}.parquet" for task in ("mini.woz", "mini.sql") for split in ("train", "dev", "test")
    ]
    for task in STREAM:
        copy = TaskConfig(name=task.name, path=tmp_path / "out" / task.name, train="all", test="all")
        for split in ("train", "dev", "test"):
            table = load(copy, split, data)
            assert table.schema == EXAMPLES
            assert table.equals(load(task, split, data))
        renamed = TaskConfig(name="mine", path=copy.path, metric=metric_of(task), train=3)
        assert set(load(renamed, "train", data).column("task").to_pylist()) == {"mine"}


def test_files_are_replaced_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    prepare(STREAM[:1], DataConfig(), tmp_path)
    prepare([TaskConfig(name="mini.woz", train=3, test=2)], DataConfig(), tmp_path)
    assert pq.read_table(tmp_path / "mini.woz" / "train.parquet").num_rows == 3
    assert sorted(path.name for path in (tmp_path / "mini.woz").iterdir()) == [
        "dev.parquet",
        "test.parquet",
        "train.parquet",
    ]


def test_a_dev_split_may_be_missing_but_no_other(write: Write, tmp_path: Path, data: DataConfig) -> None:
    task = TaskConfig(name="mine", path=tmp_path / "own", metric="em")
    write("own/train.csv", "context,question,answer\nc,q,a\n")
    with pytest.raises(DataError, match="no test data"):
        prepare([task], data, tmp_path / "out")
    write("own/test.csv", "context,question,answer\nc,q,a\n")
    assert [path.name for path in prepare([task], data, tmp_path / "out")] == ["train.parquet", "test.parquet"]


def test_a_damaged_dev_split_is_not_taken_for_a_missing_one(write: Write, tmp_path: Path, data: DataConfig) -> None:
    for split, text in (("train", "c,q,a\n"), ("test", "c,q,a\n"), ("dev", "c,q,\n")):
        write(f"own/{split}.csv", f"context,question,answer\n{text}")
    with pytest.raises(DataError, match="dev.csv, line 2: answer is blank".replace(".", r"\.")):
        prepare([TaskConfig(name="mine", path=tmp_path / "own", metric="em")], data, tmp_path / "out")


def test_the_summary_has_counts_lengths_and_first_examples(write: Write, tmp_path: Path, data: DataConfig) -> None:
    lines = [
        '{"context": " two  words ", "question": "q", "answer": ["a b c", "d"]}',
        '{"context": "", "question": "three word question", "answer": "e"}',
    ]
    write("own/train.jsonl", "\n".join(lines))
    write("own/test.jsonl", lines[0])
    task = TaskConfig(name="mine", path=tmp_path / "own", metric="nf1")
    found = summary(task, data, first=1)
    assert (found.task, found.metric) == ("mine", "nf1")
    assert [(split.split, split.examples) for split in found.splits] == [("train", 2), ("test", 1)]
    train = found.splits[0]
    assert (train.context_words, train.question_words, train.answer_words, train.references) == (1.0, 2.0, 2.0, 1.5)
    assert train.first == [{"context": " two  words ", "question": "q", "answer": "a b c", "sample_id": "0"}]
