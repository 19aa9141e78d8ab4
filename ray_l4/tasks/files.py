"""Reading raw files, plain or compressed, with errors that name the file and the place in it."""

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
"""How a file is unpacked, by the end of its name."""


class MissingFileError(DataError):
    """A data file that is not there."""


def find(folder: Path, *names: str) -> Path:
    """The first file of ``folder`` called by one of ``names``, as it is or with ``.gz`` or ``.bz2`` added.

    Raises:
        MissingFileError: there is none; the message names the nearest file that is there.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected it to hold {' or '.join(names)}.")
    for name in names:
        if path := present(folder, name):
            return path
    others = [path.name for path in folder.iterdir() if path.is_file()]
    raise MissingFileError(
        f"{folder}: no file {' or '.join(names)} (plain, .gz or .bz2). {nearest(names[0], others)}"
        if others
        else f"{folder}: the folder holds no files; expected {' or '.join(names)} (plain, .gz or .bz2)."
    )


def find_all(folder: Path, pattern: str) -> list[Path]:
    """The files of ``folder`` whose names fit a glob pattern, each as ``find`` would find it, ordered by name."""
    found = {
        path.name.removesuffix(suffix): path
        for suffix in reversed(OPENERS)  # so that a plain file wins
        for path in folder.glob(f"{pattern}{suffix}")
    }
    return [found[name] for name in sorted(found)]


def present(folder: Path, name: str) -> Path | None:
    """The file that ``find`` would find, if there is one."""
    return next((path for suffix in OPENERS if (path := folder / f"{name}{suffix}").is_file()), None)


def holds(folder: Path, name: str) -> bool:
    """Whether ``find`` would find ``name``."""
    return present(folder, name) is not None


def read_bytes(path: Path) -> bytes:
    """The unpacked contents of a file.

    Raises:
        DataError: the file cannot be read or unpacked.
    """
    unpack = OPENERS.get(path.suffix, bytes)
    try:
        return unpack(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file.") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch or write the file again.") from error


def read_text(path: Path) -> str:
    """The unpacked text of a UTF-8 file, without a byte-order mark.

    Raises:
        DataError: the file cannot be read or unpacked, or is not UTF-8 (the message gives byte offset and line).
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
    """The parsed JSON of a file; ``text`` when it was already read and a banner taken off.

    Raises:
        DataError: empty, not JSON (with line and column), or unreadable.
    """
    text = read_text(path) if text is None else text
    if not text.strip():
        raise DataError(f"{path} is empty; expected JSON.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from error


def read_json_list(path: Path, text: str | None = None) -> list[Any]:
    """``read_json`` for a file that must hold a list with something in it.

    Raises:
        DataError: as ``read_json``, or the JSON is no list, or an empty one.
    """
    value = read_json(path, text)
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a JSON list, found {type(value).__name__}.")
    if not value:
        raise DataError(f"{path} holds an empty list; expected records.")
    return value


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""The non-blank lines of a text file with their numbers from 1; only ``\n`` ends a line.

    Raises:
        DataError: no line holds anything, or the file is unreadable.
    """
    empty = True
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            empty = False
            yield number, line.rstrip("\r")
    if empty:
        raise DataError(f"{path} is empty; expected one record per line.")


_LONGEST_FIELD = 2**31 - 1
"""Characters; the library's own limit, 131,072, is less than some articles have."""


def read_csv(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str | None]]]]:
    """The header of a CSV file, and its records with the line each ends on; a record too short has None for the rest.

    Raises:
        DataError: empty, unreadable, a record with too many fields, or not CSV (with the last good line; records are
            parsed as they are asked for).
    """
    # One E2E reference holds a Windows line break, which the references' own reader turned into a plain one.
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
                if None in record:  # where DictReader puts what is left over
                    raise DataError(
                        f"{path}, line {reader.line_num}: more fields than the header's {len(names)} columns. "
                        "A text that holds a comma has to stand in double quotes."
                    )
                yield reader.line_num, record
        except csv.Error as error:
            raise DataError(f"{path}: not CSV after line {reader.line_num}: {error}.") from error

    return names, records()


_STREAMS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".bz2": bz2.open}


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file without a header, each with the line it ends on; read as they are asked for.

    Raises:
        DataError: unreadable, not UTF-8, or not CSV (with the last good line).
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


def need_columns(path: Path, present: list[str], *needed: str) -> None:
    """Check that the columns ``needed`` are among those ``present``.

    Raises:
        DataError: one is not; the message names the nearest.
    """
    for name in needed:
        if name not in present:
            raise DataError(f"{path}: no column {name!r}. {nearest(name, present)}")
