"""Readers of raw files, plain or compressed, whose errors name the file and the position in it."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ray_l4.errors import DataError, nearest

OPENERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.decompress, ".bz2": bz2.decompress}
"""Decompression function by file suffix."""


class MissingFileError(DataError):
    """A data file that does not exist."""


def find(folder: Path, *names: str) -> Path:
    """Return the first of ``names`` that exists in ``folder``, as it is or with ``.gz`` or ``.bz2`` appended.

    Raises:
        MissingFileError: none exists; the message suggests the existing file with the most similar name.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected it to contain {' or '.join(names)}.")
    for name in names:
        if path := find_or_none(folder, name):
            return path
    others = [path.name for path in folder.iterdir() if path.is_file()]
    raise MissingFileError(
        f"{folder}: no file {' or '.join(names)} (plain, .gz or .bz2). {nearest(names[0], others)}"
        if others
        else f"{folder}: the folder contains no files; expected {' or '.join(names)} (plain, .gz or .bz2)."
    )


def find_all(folder: Path, pattern: str) -> list[Path]:
    """Return the files of ``folder`` that match a glob pattern, plain or compressed, sorted by name.

    Of a file that exists both ways the plain one is returned, as by ``find``.
    """
    found = {
        path.name.removesuffix(suffix): path
        for suffix in reversed(OPENERS)  # so that a plain file wins
        for path in folder.glob(f"{pattern}{suffix}")
    }
    return [found[name] for name in sorted(found)]


def find_or_none(folder: Path, name: str) -> Path | None:
    """Return the file that ``find`` would return, or None if there is none."""
    return next((path for suffix in OPENERS if (path := folder / f"{name}{suffix}").is_file()), None)


def has_file(folder: Path, name: str) -> bool:
    """Return whether ``find`` would find ``name``."""
    return find_or_none(folder, name) is not None


def read_bytes(path: Path) -> bytes:
    """Return the decompressed contents of a file.

    Raises:
        DataError: the file cannot be read or decompressed.
    """
    unpack = OPENERS.get(path.suffix, bytes)
    try:
        return unpack(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file.") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch or write the file again.") from error


def read_text(path: Path) -> str:
    """Return the decompressed text of a UTF-8 file, without a byte-order mark.

    Raises:
        DataError: the file cannot be read or decompressed, or is not UTF-8 (with byte offset and line).
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}: not UTF-8 at byte {error.start} (line {line}): 0x{data[error.start]:02x}. "
            "Save the file as UTF-8 and try again."
        ) from error


def read_json(path: Path, text: str | None = None) -> Any:
    """Return the parsed JSON of a file.

    Args:
        text: the file's contents, if the caller has already read them (to remove a banner); ``path`` then only names
            the file in errors.

    Raises:
        DataError: the file is empty, not JSON (with line and column), or unreadable.
    """
    text = read_text(path) if text is None else text
    if not text.strip():
        raise DataError(f"{path} is empty; expected JSON.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from error


def read_json_list(path: Path, text: str | None = None) -> list[Any]:
    """Return the parsed JSON of a file that must hold a non-empty list; arguments as for ``read_json``.

    Raises:
        DataError: as ``read_json``, or the JSON is not a list or an empty one.
    """
    value = read_json(path, text)
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a JSON list, found {type(value).__name__}.")
    if not value:
        raise DataError(f"{path} contains an empty list; expected records.")
    return value


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield the non-blank lines of a text file with their numbers from 1; only ``\n`` ends a line.

    Raises:
        DataError: every line is blank, or the file is unreadable.
    """
    empty = True
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            empty = False
            yield number, line.rstrip("\r")
    if empty:
        raise DataError(f"{path} is empty; expected one record per line.")


_LONGEST_FIELD = 2**31 - 1
"""Limit in characters. The csv module's default, 131,072, is too short for some articles."""


def read_csv(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str | None]]]]:
    """Return the header of a CSV file and an iterator over its records, each with the number of its last line.

    Fields that a short record lacks are None.

    Raises:
        DataError: the file is empty or unreadable, a record has too many fields, or the file is not CSV (with the last
            good line). Records are parsed lazily, so the last two are raised by the iterator.
    """
    # One E2E reference contains a Windows line break, which the reference implementations read as a plain one.
    text = read_text(path).replace("\r\n", "\n")
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = list(reader.fieldnames or [])
    except csv.Error as error:
        raise DataError(f"{path}: not CSV after line {reader.line_num}: {error}.") from error
    if not names:
        raise DataError(f"{path} is empty; expected a header and records.")

    def records() -> Iterator[tuple[int, dict[str, str | None]]]:
        try:
            for record in reader:
                if None in record:  # the key under which DictReader stores surplus fields
                    raise DataError(
                        f"{path}, line {reader.line_num}: more fields than the header's {len(names)} columns. "
                        "Put text that contains a comma in double quotes."
                    )
                yield reader.line_num, record
        except csv.Error as error:
            raise DataError(f"{path}: not CSV after line {reader.line_num}: {error}.") from error

    return names, records()


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


def require_columns(path: Path, present: list[str], *needed: str) -> None:
    """Check that the columns ``needed`` are among those ``present``.

    Raises:
        DataError: a column is missing; the message suggests the most similar one.
    """
    for name in needed:
        if name not in present:
            raise DataError(f"{path}: no column {name!r}. {nearest(name, present)}")
