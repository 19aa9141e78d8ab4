"""Reader of custom tasks: a folder with ``train.*``, ``test.*`` and optionally ``dev.*``.

Each split is one file: JSONL or CSV (plain, .gz or .bz2), or Parquet. ``TaskConfig.columns`` names the columns; a
constant ``TaskConfig.question`` replaces the question column. An answer may be a list of texts, all of them correct.
Chat data (``tasks/chat.py``) is recognised by its columns.
A file with all columns of ``EXAMPLES``, as ``prepare`` writes it, is read back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_l4.errors import DataError
from ray_l4.tasks import chat
from ray_l4.tasks.files import OPENERS, MissingFileError, read_csv, read_lines, require_columns
from ray_l4.tasks.rows import BadRecords
from ray_l4.tasks.schema import EXAMPLES
from ray_l4.tasks.source import Source

Record = tuple[str, dict[str, Any]]
"""A record's position in its file, and its fields."""


def read(source: Source, bad: BadRecords) -> Iterator[Mapping[str, object]]:
    """Yield the examples of a custom task, in file order.

    ``sample_id`` comes from the id column; without one it is the record's number, from 0.

    Raises:
        DataError: the split has no file or several, or its file is unreadable or lacks a required column.
    """
    path = _file(source)
    columns, question = source.task.columns, source.task.question
    present, records = _records(path, bad)
    if set(EXAMPLES.names) <= set(present):  # prepare wrote it
        for where, record in records:
            yield {**record, "where": where}
        return
    if (chat_reader := chat.reader_of(path, columns, present)) is not None:
        yield from _conversations(source, chat_reader, records, bad)
        return
    needed = [columns.context, columns.answer, *([columns.id] if columns.id else [])]
    require_columns(path, present, *needed, *([columns.question] if question is None else []))
    for number, (where, record) in enumerate(records):
        answer = record.get(columns.answer)
        if isinstance(answer, str) and not answer.strip():
            bad.add(where, f"{columns.answer} is blank")
            continue
        yield {
            "context": record.get(columns.context),
            "question": record.get(columns.question) if question is None else question,
            "references": [answer] if isinstance(answer, str) else answer,
            "sample_id": _identifier(record.get(columns.id)) if columns.id else str(number),
            "where": where,
        }


def _conversations(
    source: Source, read_record: chat.Reader, records: Iterator[Record], bad: BadRecords
) -> Iterator[Mapping[str, object]]:
    """Yield the examples of chat data. Raises DataError if the task sets a question, which such data has itself."""
    if source.task.question is not None:
        raise DataError(
            f"Task {source.task.name!r}: 'question' is set, but the user's last turn in {source.folder} is the "
            "question of chat data. Remove the key."
        )
    identifier = source.task.columns.id
    for number, (where, record) in enumerate(records):
        try:
            row = read_record(record)
        except chat.UnusableRecordError as error:
            bad.add(where, str(error))
            continue
        yield {**row, "sample_id": _identifier(record.get(identifier)) if identifier else str(number), "where": where}


def _identifier(value: Any) -> Any:
    """Return an id as text if it is a number, as ids in files often are."""
    return str(value) if isinstance(value, int) else value


def _file(source: Source) -> Path:
    """Return the file of the split, the only one. Raises DataError if there is none or several."""
    folder, split = source.folder, source.split
    expected = f"{split}.jsonl, {split}.csv (plain, .gz or .bz2) or {split}.parquet"
    if not folder.is_dir():
        raise MissingFileError(f"Task {source.task.name!r}: no folder {folder}; expected it to contain {expected}.")
    names = [f"{split}{kind}{suffix}" for kind in (".jsonl", ".csv") for suffix in OPENERS] + [f"{split}.parquet"]
    present = [folder / name for name in names if (folder / name).is_file()]
    if not present:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise MissingFileError(
            f"Task {source.task.name!r}: no {split} data in {folder}; expected {expected}, found {found}."
        )
    if len(present) > 1:
        both = " and ".join(path.name for path in present)
        raise DataError(f"Task {source.task.name!r}: {folder} contains {both}; keep one file for the {split} split.")
    return present[0]


def _records(path: Path, bad: BadRecords) -> tuple[list[str], Iterator[Record]]:
    """Return the column names of a file and an iterator over its records."""
    if path.suffix == ".parquet":
        return _parquet(path)
    if ".csv" in path.suffixes:
        names, records = read_csv(path)
        return names, ((f"{path.name}, line {line}", dict(record)) for line, record in records)
    return _jsonl(path, bad)


def _parquet(path: Path) -> tuple[list[str], Iterator[Record]]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); write the file again.") from error
    rows = ((f"{path.name}, row {number}", row) for number, row in enumerate(table.to_pylist(), start=1))
    return table.column_names, rows


def _jsonl(path: Path, bad: BadRecords) -> tuple[list[str], Iterator[Record]]:
    records: list[Record] = []
    for line, text in read_lines(path):
        where = f"{path.name}, line {line}"
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            bad.add(where, f"not JSON: {error.msg}")
            continue
        if isinstance(value, dict):
            records.append((where, value))
        else:
            bad.add(where, f"expected a JSON object, found {type(value).__name__}")
    if not records:  # without a good record there are no columns to look for
        bad.check(0)
    return list(dict.fromkeys(name for _, record in records for name in record)), iter(records)
