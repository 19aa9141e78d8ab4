"""Checksums of the files of a folder: ``SHA256SUMS``, which ``sha256sum -c SHA256SUMS`` checks as well.

A folder that an earlier version wrote has no such file; its files then pass. In a folder that has one, a file that is
not named there does not pass, so a list that was cut off is noticed too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ray_l4.store.atomic import write_text

SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_ON_PURPOSE = f"if it was changed on purpose, delete {SUMS}"


def write_sums(folder: Path) -> None:
    """Write the checksums of all files that lie in ``folder``."""
    _write(folder, {path.name: file_sum(path) for path in _files(folder)})


def add_sum(path: Path) -> None:
    """Write the checksum of one file anew, beside those of the other files of its folder."""
    found = _read(path.parent)
    known = {} if found is None else dict(found.known)
    known.pop(path.name, None)
    _write(path.parent, {file.name: known.get(file.name) or file_sum(file) for file in _files(path.parent)})


def remove_sums(folder: Path, names: set[str]) -> None:
    """Forget the checksums of files that were removed."""
    found = _read(folder)
    if found is not None and names & found.known.keys():
        _write(folder, {name: digest for name, digest in found.known.items() if name not in names})


def damage_of(path: Path) -> str | None:
    """Return how a file differs from what was written, worded to follow its path; None if it does not.

    Only its own line of the list counts. Raises OSError if it cannot be read.
    """
    found = _read(path.parent)
    return None if found is None else _damage(path, found.known)


def damaged_in(folder: Path, *, except_for: str = "") -> str | None:
    """Return the first file of ``folder`` that is not as it was written, and how; None if all and their list are.

    ``except_for``: the end of the names of files that are not looked at. Raises OSError if one cannot be read.
    """
    found = _read(folder)
    if found is None:
        return None
    if not found.is_whole:
        return f"{folder / SUMS} is damaged"
    for name in sorted(found.known):
        how = None if except_for and name.endswith(except_for) else _damage(folder / name, found.known)
        if how is not None:
            return f"{folder / name} {how}"
    return None


def _damage(path: Path, known: Mapping[str, str]) -> str | None:
    if path.name not in known:
        return f"is damaged, or {SUMS} beside it is: it is not named there ({_ON_PURPOSE})"
    if not path.is_file():
        return "is missing"
    if file_sum(path) != known[path.name]:
        return f"is damaged: its SHA-256 is not the one in {SUMS} beside it ({_ON_PURPOSE})"
    return None


def file_sum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS and path.name[0] != ".")


def _write(folder: Path, sums: Mapping[str, str]) -> None:
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


class _Sums(NamedTuple):
    """The list of a folder."""

    known: Mapping[str, str]
    """Name -> checksum."""
    is_whole: bool
    """Whether all lines of the list could be read."""


def _read(folder: Path) -> _Sums | None:
    """Return the checksums of the files of a folder; None if they have none."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    lines = [_LINE.fullmatch(line) for line in text.splitlines()]
    known = {line[2].removeprefix("./"): line[1] for line in lines if line}
    return _Sums(known, bool(lines) and all(lines))
