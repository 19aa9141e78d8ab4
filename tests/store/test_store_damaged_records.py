"""Damaged JSON and Parquet of a run directory: each is refused with one error that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_l4.errors import RunDirectoryError
from ray_l4.store.record_types import Manifest, Score, Validation
from ray_l4.store.run_directory import read_json, read_record
from ray_l4.store.tables import read_table


@pytest.mark.parametrize("text", ["[" * 100_000, '{"seed": ' + "9" * 5000 + "}", "[]", "", '{"a": "\xff'])
def test_json_that_cannot_be_read_is_damage(tmp_path: Path, text: str) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunDirectoryError, match=r"summary\.json"):
        read_json(path)


@pytest.mark.parametrize("put", [lambda path: path.mkdir(), lambda path: path.symlink_to(path.name)])
def test_a_folder_or_a_loop_in_place_of_a_file(tmp_path: Path, put: Callable[[Path], None]) -> None:
    path = tmp_path / "timeline.parquet"
    put(path)
    for read in (lambda: read_json(path), lambda: read_table(path, ("start",))):
        with pytest.raises(RunDirectoryError, match=r"timeline\.parquet"):
            read()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Score, '{"headline": "em", "values": {"em": null}}'),
        (Score, '{"headline": "em", "values": {"f1": 1}}'),
        (Score, '{"headline": ["em"], "values": {}}'),
        (Validation, '{"examples": 1, "epoch": "2", "means": [1.0]}'),
        (Validation, '{"examples": 1, "epoch": 999999999999, "means": [1.0]}'),
        (Manifest, '{"longest_sequences": {"a": "b"}}'),
    ],
)
def test_a_value_of_the_wrong_type_is_damage(tmp_path: Path, model: type[Score], text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"record\.json: damaged"):
        read_record(path, model)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("lane", pa.array([None, "a"])),
        ("start", pa.array(["x", "y"])),
        ("start", pa.array([float("nan"), 1.0])),
        ("stage", pa.array([0, 2**62])),
        ("references", pa.array([["a"], [None]])),
        ("valid", pa.array([1, 0])),
    ],
)
def test_a_column_of_another_type_is_damage(tmp_path: Path, column: str, values: pa.Array) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({column: values}), path)
    with pytest.raises(RunDirectoryError, match=rf"t\.parquet: column '{column}' holds"):
        read_table(path, (column,))
