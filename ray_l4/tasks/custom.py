"""Reader of custom tasks: a folder with ``train.*``, ``test.*`` and optionally ``dev.*``.

Each split is one file: JSONL, CSV or TSV (plain, .gz or .bz2), or Parquet (also a folder of parts); or a folder that
the library datasets saved. ``TaskConfig.columns`` names the columns; a
constant ``TaskConfig.question`` replaces the question column. An answer may be a list of texts, all of them correct.
Chat data (``tasks/chat_records.py``) is recognised by its columns.
A file with all columns of ``EXAMPLES``, as ``prepare`` writes it, is read back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_l4.config.text import is_blank
from ray_l4.errors import DataError
from ray_l4.tasks import chat_records
from ray_l4.tasks.chat_messages import UnusableRecordError
from ray_l4.tasks.delimited import read_csv
from ray_l4.tasks.files import require_columns
from ray_l4.tasks.hub import fetch_split
from ray_l4.tasks.own_files import DATASET_STATE, find_split
from ray_l4.tasks.own_tables import Record, read_dataset, read_parquet
from ray_l4.tasks.rows import BadRecords
from ray_l4.tasks.schema import EXAMPLES
from ray_l4.tasks.source import Source
from ray_l4.tasks.text_lines import read_lines


def read(source: Source, bad: BadRecords) -> Iterator[Mapping[str, object]]:
    """Yield the examples of a custom task, in file order.

    ``sample_id`` comes from the id column; without one it is the record's number, from 0.

    Raises:
        DataError: the split has no file or several, or its file is unreadable or lacks a required column.
    """
    return read_file(find_split(source) if source.task.dataset is None else fetch_split(source), source, bad)


def read_file(path: Path, source: Source, bad: BadRecords) -> Iterator[Mapping[str, object]]:
    """Yield the examples of one file or folder of a custom task, in file order, as ``read`` does.

    Raises:
        DataError: it is unreadable or lacks a required column.
    """
    columns, question = source.task.columns, source.task.question
    needed = [columns.context, columns.answer, *([columns.id] if columns.id else [])]
    needed += [columns.question] if question is None else []
    present, records = records_of(path, needed, bad)
    if set(EXAMPLES.names) <= set(present):  # prepare wrote it
        for where, record in records:
            yield {**record, "where": where}
        return
    if (chat_reader := chat_records.reader_of(path, columns, present)) is not None:
        yield from _conversations(source, chat_reader, records, bad)
        return
    require_columns(path, present, *needed)
    for number, (where, record) in enumerate(records):
        answer = record.get(columns.answer)
        if any(isinstance(text, str) and is_blank(text) for text in (answer if isinstance(answer, list) else [answer])):
            blank = "contains a blank text" if isinstance(answer, list) else "is blank"
            bad.add(where, f"{columns.answer} {blank}")
            continue
        yield {
            "context": record.get(columns.context),
            "question": record.get(columns.question) if question is None else question,
            "references": [answer] if isinstance(answer, str) else answer,
            "sample_id": _identifier(record.get(columns.id)) if columns.id else str(number),
            "where": where,
        }


def _conversations(
    source: Source, read_record: chat_records.Reader, records: Iterator[Record], bad: BadRecords
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
        except UnusableRecordError as error:
            bad.add(where, str(error))
            continue
        yield {**row, "sample_id": _identifier(record.get(identifier)) if identifier else str(number), "where": where}


def _identifier(value: Any) -> Any:
    """Return an id as text if it is a number, as ids in files often are."""
    return str(value) if isinstance(value, int) else value


def records_of(path: Path, needed: Sequence[str], bad: BadRecords) -> tuple[list[str], Iterator[Record]]:
    """Return the column names of a file or folder and an iterator over its records."""
    if (path / DATASET_STATE).is_file():
        return read_dataset(path)
    if path.suffix == ".parquet" or path.is_dir():
        return read_parquet(path)
    if {".csv", ".tsv"} & set(path.suffixes):
        names, records = read_csv(path, needed)
        return names, ((f"{path.name}, line {line}", dict(record)) for line, record in records)
    return _jsonl(path, bad)


def _jsonl(path: Path, bad: BadRecords) -> tuple[list[str], Iterator[Record]]:
    """Return the keys of all objects of a file and an iterator over the objects, for which it is read once more."""
    names: dict[str, None] = {}
    empty = True
    for _, record in _objects(path, bad):
        empty = False
        if not record.keys() <= names.keys():
            names.update(dict.fromkeys(record))
    if empty:  # without a good record there are no columns to look for
        bad.check(0)
        if not bad.count:
            raise DataError(f"{path} is empty; expected one record per line.")
    return list(names), _objects(path, BadRecords(bad.source, bad.max_fraction))  # the bad ones are counted already


def _objects(path: Path, bad: BadRecords) -> Iterator[Record]:
    for line, text in read_lines(path):
        if is_blank(text):
            continue
        where = f"{path.name}, line {line}"
        try:
            value = _parsed(text)
        except json.JSONDecodeError as error:
            bad.add(where, f"not JSON: {error.msg}")
            continue
        except (ValueError, RecursionError) as error:
            bad.add(where, str(error))
            continue
        if isinstance(value, dict):
            yield where, value
        else:
            bad.add(where, f"expected a JSON object, found {type(value).__name__}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if it has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"{repeated!r} occurs more than once")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Made once, since it takes longer than to decode a line."""


def _parsed(text: str) -> Any:
    if text.startswith("\ufeff"):  # json.loads says what is wrong
        return json.loads(text)
    return _DECODER.decode(text)
