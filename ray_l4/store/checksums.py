"""Checksums of the files of a folder: ``SHA256SUMS``, which ``sha256sum -c SHA256SUMS`` checks as well.

A folder that an earlier version wrote has no such file; its files then pass. In a folder that has one, a file that is
not named there does not pass, so a list that was cut off is noticed too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from ray_l4.store.atomic import write_text

SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_UNCHECKED = "cannot be checked: "
_ON_PURPOSE = f"if it was changed on purpose, delete {SUMS}"


def write_sums(folder: Path) -> None:
    """Write the checksums of all files that lie in ``folder``."""
    _write(folder, {path.name: _sum(path) for path in _files(folder)})


def add_sum(path: Path) -> None:
    """Write the checksum of one file anew, beside those of the other files of its folder."""
    known = _read(path.parent)
    known = {} if isinstance(known, str) or known is None else known
    known.pop(path.name, None)
    _write(path.parent, {file.name: known.get(file.name) or _sum(file) for file in _files(path.parent)})


def remove_sums(folder: Path, names: set[str]) -> None:
    """Forget the checksums of files that were removed."""
    known = _read(folder)
    if isinstance(known, dict) and names & known.keys():
        _write(folder, {name: known[name] for name in known if name not in names})


def damage_of(path: Path) -> str | None:
    """Return how a file differs from what was written, worded to follow its path; None if it does not.

    Raises OSError if it cannot be read.
    """
    known = _read(path.parent)
    if known is None:
        return None
    return known if isinstance(known, str) else _damage(path, known)


def damaged_in(folder: Path, *, except_for: str = "") -> str | None:
    """Return the first file of ``folder`` that is not as it was written, and how; None if all are.

    ``except_for``: the end of the names of files that are not looked at. Raises OSError if one cannot be read.
    """
    known = _read(folder)
    if isinstance(known, str):
        return known.removeprefix(_UNCHECKED)
    for name in sorted(known or ()):
        how = None if except_for and name.endswith(except_for) else _damage(folder / name, known or {})
        if how is not None:
            return f"{folder / name} {how}"
    return None


def _damage(path: Path, known: Mapping[str, str]) -> str | None:
    if path.name not in known:
        return f"is damaged, or {SUMS} beside it is: it is not named there ({_ON_PURPOSE})"
    if not path.is_file():
        return "is missing"
    if _sum(path) != known[path.name]:
        return f"is damaged: its SHA-256 is not the one in {SUMS} beside it ({_ON_PURPOSE})"
    return None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS and path.name[0] != ".")


def _write(folder: Path, sums: Mapping[str, str]) -> None:
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def _read(folder: Path) -> dict[str, str] | str | None:
    """Return name -> checksum of the files of a folder; None if they have none; that the list is damaged, if it is."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return f"{_UNCHECKED}{folder / SUMS} is damaged"
    lines = [_LINE.fullmatch(line) for line in text.splitlines()]
    if not lines or not all(lines):
        return f"{_UNCHECKED}{folder / SUMS} is damaged"
    return {line[2].removeprefix("./"): line[1] for line in lines if line}
