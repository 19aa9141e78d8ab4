"""Custom tasks in Parquet and in folders of the library datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import Columns, Splits, TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.registry import load

RECORDS = [{"context": f"c{n}", "question": f"q{n}", "answer": f"a{n}"} for n in range(4)]
LABELS = {"answer": {"names": ["no", "yes"], "_type": "ClassLabel"}}


def task(folder: Path, **settings: Any) -> TaskConfig:
    return TaskConfig(name="mine", path=folder, metric="em", **settings)


def answers(folder: Path, data: DataConfig, split: Any = "train", **settings: Any) -> list[str]:
    return load(task(folder, **settings), split, data).column("answer").to_pylist()


def put(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def save(folder: Path, parts: Sequence[pa.Table], features: Any = None) -> None:
    """Write a folder as ``Dataset.save_to_disk`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05}-of-{len(parts):05}.arrow" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, part.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": folder.name}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))


# --- Parquet ---


@pytest.mark.parametrize("above", ["answer=x", "lang=en/year=2024", "question=1"])
def test_folders_above_the_data_are_no_columns(tmp_path: Path, data: DataConfig, above: str) -> None:
    put(tmp_path / above / "train.parquet", pa.Table.from_pylist(RECORDS))
    rows = load(task(tmp_path / above), "train", data).to_pylist()
    assert [(row["question"], row["answer"]) for row in rows] == [(f"q{n}", f"a{n}") for n in range(4)]


def test_a_folder_of_parts_is_one_table(tmp_path: Path, data: DataConfig) -> None:
    folder = tmp_path / "a=b" / "train.parquet"
    for number in (1, 0):
        part = pa.Table.from_pylist(RECORDS[2 * number :][:2])
        put(folder / f"part-{number}.parquet", part.select(["answer", "context", "question"]) if number else part)
    (folder / "_SUCCESS").touch()
    put(folder / "_temporary" / "part-9.parquet", pa.table({"x": [1]}))
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    assert answers(folder.parent, data) == ["a0", "a1", "a2", "a3"]


def test_folders_inside_the_data_are_columns(tmp_path: Path, data: DataConfig) -> None:
    table = pa.Table.from_pylist(RECORDS[:1]).select(["context", "question"])
    for value in ("1", "caf%C3%A9 %2F"):
        put(tmp_path / "train.parquet" / f"answer={value}" / "part-0.parquet", table)
    assert answers(tmp_path, data) == ["1", "café /"]
    put(tmp_path / "train.parquet" / "answer=__HIVE_DEFAULT_PARTITION__" / "part-0.parquet", table)
    with pytest.raises(DataError, match=r"answer=__HIVE\S+part-0\.parquet, row 1: answer is missing"):
        answers(tmp_path, data)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_every_kind_of_text_column_is_text(tmp_path: Path, data: DataConfig, kind: pa.DataType) -> None:
    table = pa.Table.from_pylist(RECORDS)
    put(tmp_path / "train.parquet", pa.table({name: table.column(name).cast(kind) for name in table.column_names}))
    assert answers(tmp_path, data) == ["a0", "a1", "a2", "a3"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a", ""]], "row 1: answer contains a blank text"),
        ([["a"], ["\u200b\ufeff"]], "row 2: answer contains a blank text"),
        ([["a", None]], "row 1: answer contains a value that is missing"),
        ([[]], "row 1: answer is an empty list"),
        ([{"text": ["a"]}], "row 1: answer is of type dict"),
        ([[["a"]]], "row 1: answer contains a value that is of type list"),
        ([7], "row 1: answer is of type int"),
        ([b"a"], "row 1: answer is of type bytes"),
        ([None, "\u2060"], "row 1: answer is missing"),
        (["\u00a0"], "row 1: answer is blank"),
    ],
)
def test_answers_that_are_no_text_are_located(tmp_path: Path, data: DataConfig, values: Any, message: str) -> None:
    count = len(values)
    table = pa.table({"context": ["c"] * count, "question": ["q"] * count, "answer": pa.array(values)})
    put(tmp_path / "train.parquet", table)
    with pytest.raises(DataError, match=rf"train\.parquet, {message}"):
        answers(tmp_path, data)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path, data: DataConfig) -> None:
    texts = pa.array(["x"])
    put(tmp_path / "train.parquet", pa.Table.from_arrays([texts] * 4, ["context", "question", "answer", "answer"]))
    with pytest.raises(DataError, match=r"train\.parquet: column 'answer' occurs more than once"):
        answers(tmp_path, data)


def test_parts_that_differ_or_are_missing_are_refused(tmp_path: Path, data: DataConfig) -> None:
    (tmp_path / "train.parquet").mkdir()
    with pytest.raises(DataError, match=r"a folder without \*\.parquet files"):
        answers(tmp_path, data)
    put(tmp_path / "train.parquet" / "0.parquet", pa.Table.from_pylist(RECORDS))
    put(tmp_path / "train.parquet" / "1.parquet", pa.table({"context": ["c"]}))
    with pytest.raises(
        DataError, match=r"1\.parquet: has the columns context, but \S+0\.parquet has context, question"
    ):
        answers(tmp_path, data)
    (tmp_path / "train.parquet" / "1.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"1\.parquet: cannot be read as Parquet"):
        answers(tmp_path, data)


def test_text_that_is_not_utf8_is_a_data_error(tmp_path: Path, data: DataConfig) -> None:
    wrong = pa.array([b"caf\xe9"]).view(pa.string())
    put(tmp_path / "train.parquet", pa.table({"context": wrong, "question": ["q"], "answer": ["a"]}))
    with pytest.raises(DataError, match=r"train\.parquet: text that is not UTF-8"):
        answers(tmp_path, data)


def test_labels_of_the_hub_are_read_by_their_names(tmp_path: Path, data: DataConfig) -> None:
    table = pa.table({"context": ["x", "y"], "question": ["q"] * 2, "answer": [1, 0]})
    put(
        tmp_path / "train.parquet",
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": LABELS}})}),
    )
    assert answers(tmp_path, data) == ["yes", "no"]


# --- folders of the library datasets ---


def test_a_saved_folder_of_splits(tmp_path: Path, data: DataConfig) -> None:
    save(tmp_path / "train", [pa.Table.from_pylist(RECORDS[:3]), pa.Table.from_pylist(RECORDS[3:])])
    save(tmp_path / "test", [pa.Table.from_pylist(RECORDS[:1])])
    save(tmp_path / "validation", [pa.Table.from_pylist(RECORDS[1:2])])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test", "validation"]}')
    assert answers(tmp_path, data) == ["a0", "a1", "a2", "a3"]
    assert answers(tmp_path, data, "test") == ["a0"]
    assert answers(tmp_path, data, "dev") == ["a1"]
    assert answers(tmp_path, data, "test", splits=Splits(test="validation")) == ["a1"]


def test_saved_columns_labels_and_lists(tmp_path: Path, data: DataConfig) -> None:
    table = pa.table({"text": ["x", "y"], "label": [0, 1], "several": [["a", "b"], ["c"]], "labels": [[1, 0], [0]]})
    features = {
        "label": LABELS["answer"],
        "labels": {"feature": LABELS["answer"], "_type": "List"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    save(tmp_path / "train", [table], features)
    for column, expected in {
        "label": [["no"], ["yes"]],
        "several": [["a", "b"], ["c"]],
        "labels": [["yes", "no"], ["no"]],
    }.items():
        chosen = task(tmp_path, columns=Columns(context="text", answer=column), question="?")
        assert load(chosen, "train", data).column("references").to_pylist() == expected


def test_a_label_without_a_name_is_a_bad_record(tmp_path: Path, data: DataConfig) -> None:
    save(tmp_path / "test", [pa.table({"context": ["x"], "question": ["q"], "answer": [-1]})], LABELS)
    with pytest.raises(DataError, match=r"test/data-00000-of-00001\.arrow, row 1: answer is missing"):
        answers(tmp_path, data, "test")


def test_saved_folders_that_cannot_be_used(tmp_path: Path, data: DataConfig) -> None:
    save(tmp_path, [pa.Table.from_pylist(RECORDS)])
    with pytest.raises(DataError, match=r"is one data set without splits.*train_test_split"):
        answers(tmp_path, data)
    (tmp_path / "state.json").unlink()
    save(tmp_path / "train", [pa.Table.from_pylist(RECORDS)])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "unsupervised"]}')
    with pytest.raises(DataError, match=r"has no split 'test'.*splits: \{test: NAME\}"):
        answers(tmp_path, data, "test")
    (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"\.arrow: cannot be read as Arrow data"):
        answers(tmp_path, data)
    (tmp_path / "train" / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}')
    with pytest.raises(DataError, match=r"flatten_indices"):
        answers(tmp_path, data)


def test_a_folder_that_the_library_wrote(tmp_path: Path, data: DataConfig) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        context=datasets.Value("string"),
        question=datasets.Value("string"),
        answer=datasets.ClassLabel(names=["no", "yes"]),
    )
    whole = datasets.Dataset.from_dict(
        {"context": list("abcd"), "question": ["q"] * 4, "answer": [0, 1, 1, 0]}, features=features
    )
    datasets.DatasetDict(train=whole, test=whole.select([1, 3])).save_to_disk(str(tmp_path))
    assert answers(tmp_path, data) == ["no", "yes", "yes", "no"]
    assert answers(tmp_path, data, "test") == ["yes", "no"]
