"""Lines of text files, plain or compressed, of which only a few are in memory at a time."""

from __future__ import annotations

import bz2
import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ray_l4.errors import DataError
from ray_l4.tasks.files import read_text

_STREAMS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
_BLOCK = 2**18
"""Bytes that are decoded at a time to check a file."""


def check_text(path: Path) -> None:
    """Check a whole file, so that its lines can be read without an error.

    Raises:
        DataError: as ``read_text``.
    """
    decoder, whole = codecs.getincrementaldecoder("utf-8")(), True
    try:
        with _opened(path) as file:
            while (block := file.read(_BLOCK)) and (whole := b"\0" not in block):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except (OSError, EOFError, ValueError, zlib.error):
        whole = False
    if not whole:
        read_text(path)  # raises, and says what is wrong and where


def lines_of(path: Path) -> Iterator[str]:
    r"""Yield all lines of a text file that ``check_text`` has checked, each with its ``\n``; no byte-order mark."""
    with _opened(path) as file:
        for number, line in enumerate(file):
            text = line.decode("utf-8")
            yield text if number else text.removeprefix("\ufeff")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield the non-blank lines of a text file with their numbers from 1; only ``\n`` ends a line.

    Raises:
        DataError: every line is blank, or the file is unreadable. The latter is known before the first line.
    """
    check_text(path)
    empty = True
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            empty = False
            yield number, line.removesuffix("\n").rstrip("\r")
    if empty:
        raise DataError(f"{path} is empty; expected one record per line.")


def _opened(path: Path) -> IO[bytes]:
    suffix = path.suffix if path.stat().st_size else ""  # bz2 takes an empty file for a damaged one
    file: IO[bytes] = _STREAMS.get(suffix, open)(path, "rb")
    return file
