"""Readers of CSV files: records with named columns, or plain rows. Errors name the file and the line in it."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

from ray_l4.config.text import is_blank
from ray_l4.errors import DataError
from ray_l4.tasks.files import refuse_repeated
from ray_l4.tasks.text_lines import check_text, lines_of

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
"""Separators of columns, the usual one first, and their names."""
_LONGEST_FIELD = 2**31 - 1
"""Limit in characters. The csv module's default, 131,072, is too short for some articles."""
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?\s*\n', re.IGNORECASE)
"""First line by which Excel names the separator."""

Record = dict[str, str | None]


@dataclass(frozen=True)
class _Table:
    """A CSV file taken to have a certain separator."""

    separator: str
    names: Sequence[str]
    """Columns of its header."""
    rows: Iterator[tuple[int, list[str]]]
    """The records below it."""


def read_csv(path: Path, needed: Sequence[str] = ()) -> tuple[list[str], Iterator[tuple[int, Record]]]:
    """Return the header of a CSV file and an iterator over its records, each with the number of its last line.

    Blank lines are skipped. Fields that a short record lacks are None. If the columns ``needed`` are given, the
    separator is the one that finds them in the header: a comma, a semicolon, a tab or a vertical bar.

    Raises:
        DataError: the file is empty or unreadable, a column appears twice, a record has too many fields, or the file is
            not CSV (with the last good line). Records are parsed lazily, so the last two are raised by the iterator.
    """
    check_text(path)
    csv.field_size_limit(_LONGEST_FIELD)
    table = _table(path, needed)
    refuse_repeated(path, table.names)
    return list(table.names), _records(path, table)


def _table(path: Path, needed: Sequence[str]) -> _Table:
    """Return the file with the separator that fits. Raises DataError if it is empty, or its header is not CSV."""
    named, _ = _text(path)
    if named is not None:
        return _parsed(path, named)
    usual = _parsed(path, ",", strict=not needed)
    if set(needed) <= set(usual.names):
        return usual
    others = [_parsed(path, separator, strict=False) for separator in SEPARATORS if separator != usual.separator]
    best = max([usual, *others], key=lambda table: (len(set(needed) & set(table.names)), len(table.names)))
    return best if best.names else _parsed(path, usual.separator)


def _parsed(path: Path, separator: str, strict: bool = True) -> _Table:
    """Return the file with this separator; without ``strict``, with no columns if its header cannot be read so."""
    rows = _rows(path, separator)
    try:
        names = next((row for _, row in rows if not all(map(is_blank, row))), None)
    except DataError:
        if strict:
            raise
        names = []
    if names is None:
        raise DataError(f"{path} is empty; expected a header and records.")
    return _Table(separator, names, rows)


def _rows(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of the file with the number of their last line. Raises DataError if one is not CSV."""
    named, lines = _text(path)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    line = offset = 0 if named is None else 1
    try:
        for row in reader:
            line = reader.line_num + offset
            yield line, row
    except csv.Error as error:
        raise DataError(f"{path}: not CSV after line {line}: {error}.") from error


def _text(path: Path) -> tuple[str | None, Iterator[str]]:
    """Return the separator that the first line names, if it does, and the lines below it, or all of them."""
    # One E2E reference contains a Windows line break, which the reference implementations read as a plain one.
    lines = (line.replace("\r\n", "\n") for line in lines_of(path))
    head, filled = "", 0
    while filled < 2 and (line := next(lines, "")):  # what names the separator may have blank lines around it
        head += line
        filled += bool(line.strip())
    named = _SEPARATOR_LINE.match(head)
    rest = head[named.end() :] if named else head
    return named and named[1], chain(_cut(rest), chain.from_iterable(map(_cut, lines)))


def _cut(text: str) -> Iterator[str]:
    """Yield the lines of a text as the csv module expects them: a carriage return ends one, too."""
    return io.StringIO(text, newline="")


def _records(path: Path, table: _Table) -> Iterator[tuple[int, Record]]:
    width = len(table.names)
    for line, row in table.rows:
        if not row or (len(row) == 1 < width and is_blank(row[0])):
            continue
        if len(row) > width:
            raise DataError(
                f"{path}, line {line}: more fields than the header's {width} columns. "
                f"Put text that contains a {SEPARATORS.get(table.separator, table.separator)} in double quotes."
            )
        yield line, dict(zip(table.names, [*row, *[None] * (width - len(row))], strict=True))


_STREAMS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".bz2": bz2.open}


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file without a header, each with the number of its last line; the file is streamed.

    Raises:
        DataError: the file is unreadable, not UTF-8, or not CSV (with the last good line).
    """
    csv.field_size_limit(_LONGEST_FIELD)
    line = 0
    try:
        with _STREAMS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for record in reader:
                line = reader.line_num
                yield line, record
    except csv.Error as error:
        raise DataError(f"{path}: not CSV after line {line}: {error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 after line {line}. Save the file as UTF-8 and try again.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch or write the file again.") from error
