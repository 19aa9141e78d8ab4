"""Readers of raw files, plain or compressed, whose errors name the file and the position in it."""

from __future__ import annotations

import bz2
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray_l4.config.text import is_blank
from ray_l4.errors import DataError, first_line, nearest

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


_OTHER_ENCODINGS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Encoding by the byte-order mark at the beginning of a file; a mark comes before its own beginning."""


def read_text(path: Path) -> str:
    """Return the decompressed text of a UTF-8 file, without a byte-order mark.

    Raises:
        DataError: the file cannot be read or decompressed, is not UTF-8 (with byte offset and line; UTF-16 and UTF-32
            are named), or holds a NUL byte.
    """
    data = read_bytes(path)
    encoding = next((name for mark, name in _OTHER_ENCODINGS.items() if data.startswith(mark)), None)
    if encoding is not None:
        raise DataError(f"{path}: encoded as {encoding}, expected UTF-8. Save the file as UTF-8 and try again.")
    nul = data.find(b"\0")
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise DataError(
            f"{path}: a NUL byte at byte {nul} (line {line}), which no text has: the file is "
            "damaged, or encoded as UTF-16. Save it as UTF-8 and try again."
        )
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
    except ValueError as error:  # a number with more digits than Python converts
        raise DataError(f"{path}: not JSON that can be read: {first_line(error)}. Shorten the number.") from error
    except RecursionError:
        raise DataError(f"{path}: nested too deeply to be read as JSON. Write it with fewer levels.") from None


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


def require_columns(path: Path, present: list[str], *needed: str) -> None:
    """Check that the columns ``needed`` are among those ``present``.

    Raises:
        DataError: a column is missing; the message suggests the most similar one.
    """
    for name in needed:
        if name not in present:
            raise DataError(f"{path}: no column {name!r}. {nearest(name, present, 'The file has no columns.')}")


def refuse_repeated(path: Path, columns: Iterable[str]) -> None:
    """Check that no column of a file occurs twice; columns without a name may.

    Raises:
        DataError: a column does, so that it is not clear which of the two is meant.
    """
    repeated = [name for name, count in Counter(columns).items() if count > 1 and not is_blank(name)]
    if repeated:
        raise DataError(f"{path}: column {repeated[0]!r} occurs more than once; rename or remove all but one of them.")
