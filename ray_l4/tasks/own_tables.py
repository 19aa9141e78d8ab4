"""Readers of a custom task's Arrow data: a Parquet file, a folder of its parts, and a folder that datasets saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from ray_l4.errors import DataError
from ray_l4.tasks.files import read_json, refuse_repeated
from ray_l4.tasks.own_files import DATASET_STATE

Record = tuple[str, dict[str, Any]]
"""A record's position in its file, and its fields."""

_BATCH = 1000
"""Rows of a Parquet file that are read at a time."""
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""What stands for a missing value in the name of a folder."""


def read_parquet(path: Path) -> tuple[list[str], Iterator[Record]]:
    """Return the columns of a Parquet file, or of a folder of its parts, and an iterator over its records.

    Folders ``key=value`` inside such a folder are columns, as Spark and Hive write them; those above it are not. Fields
    with names for their values (the class labels of datasets) have these names.

    Raises:
        DataError: a file is unreadable, the columns of two parts differ, or one occurs twice.
    """
    parts = [path] if path.is_file() else _parts(path)
    columns = [_parquet_columns(path, part) for part in parts]
    for part, own in zip(parts, columns, strict=True):
        if set(own) != set(columns[0]):
            raise DataError(
                f"{part}: has the columns {', '.join(own)}, but {parts[0]} has {', '.join(columns[0])}; "
                "write all parts with the same columns."
            )
    return columns[0], chain.from_iterable(_parquet_records(path, part) for part in parts)


def read_dataset(folder: Path) -> tuple[list[str], Iterator[Record]]:
    """Return the columns of a split that ``save_to_disk`` of the library datasets wrote, and its records.

    Raises:
        DataError: a file is unreadable, or the folder holds a selection of rows that was never written out.
    """
    state = read_json(folder / DATASET_STATE)
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: saved with an index of rows; save it again after dataset.flatten_indices().")
    files = [folder / str(file["filename"]) for file in state.get("_data_files", [])]
    if not files:
        raise DataError(f"{folder}: {DATASET_STATE} names no data files; save the data set again.")
    info = folder / "dataset_info.json"
    names = _value_names(read_json(info).get("features") if info.is_file() else None)
    with _errors_named(files[0]), pa.memory_map(str(files[0])) as file:
        columns = pa.ipc.open_stream(file).schema.names
    refuse_repeated(files[0], columns)
    return columns, chain.from_iterable(_arrow_records(file, names) for file in files)


def _parts(folder: Path) -> list[Path]:
    """Return the part files of a folder in order, without those that Spark hides (``_SUCCESS``, ``.crc``)."""
    found = [
        path
        for path in sorted(folder.rglob("*.parquet"))
        if path.is_file() and not any(name.startswith(("_", ".")) for name in path.relative_to(folder).parts)
    ]
    if not found:
        raise DataError(f"{folder}: a folder without *.parquet files; expected the parts of a Parquet data set.")
    return found


def _folder_values(root: Path, part: Path) -> dict[str, str | None]:
    """Return the columns that the folders between ``root`` and ``part`` name, with their values."""
    pairs = (name.partition("=") for name in part.relative_to(root).parent.parts if "=" in name) if part != root else ()
    return {key: None if value == _NO_VALUE else unquote(value) for key, _, value in pairs}


def _parquet_columns(root: Path, part: Path) -> list[str]:
    with _errors_named(part), pq.ParquetFile(part) as file:
        names = list(file.schema_arrow.names)
    refuse_repeated(part, names)
    return [*names, *(key for key in _folder_values(root, part) if key not in names)]


def _parquet_records(root: Path, part: Path) -> Iterator[Record]:
    above = _folder_values(root, part)
    where = part.name if part == root else str(part.relative_to(root.parent))
    with _errors_named(part), pq.ParquetFile(part) as file:
        metadata = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        names = _value_names(metadata.get("info", {}).get("features"))
        yield from _rows(where, file.iter_batches(_BATCH), names, above)


def _arrow_records(path: Path, names: Mapping[str, Sequence[str]]) -> Iterator[Record]:
    with _errors_named(path), pa.memory_map(str(path)) as file:
        yield from _rows(f"{path.parent.name}/{path.name}", pa.ipc.open_stream(file), names, {})


def _rows(
    where: str,
    batches: Iterable[pa.RecordBatch],
    names: Mapping[str, Sequence[str]],
    above: Mapping[str, str | None],
) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            for column in names.keys() & row.keys():
                row[column] = _named(row[column], names[column])
            yield f"{where}, row {number}", {**above, **row}


def _value_names(features: Any) -> dict[str, Sequence[str]]:
    """Return the names of the values of every column with class labels, from the features that datasets records."""
    found = {}
    for column, feature in (features if isinstance(features, dict) else {}).items():
        inner = feature[0] if isinstance(feature, list) and feature else feature
        inner = inner.get("feature", inner) if isinstance(inner, dict) else inner
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and isinstance(inner.get("names"), list):
            found[column] = inner["names"]
    return found


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a label, or of each in a list; None for a label without a name, such as -1 for unknown."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Raise DataError with the name of the file if it cannot be read."""
    kind = "Parquet" if path.suffix == ".parquet" else "Arrow data"
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: text that is not UTF-8 ({error}); write the file again.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as {kind} ({error}); write the file again.") from error
