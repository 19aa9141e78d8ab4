"""Atomic writes: a file or folder is written under a temporary name and renamed, so it is complete or absent.

Storage that refuses raises UnwritableError, which names the file or folder.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_l4.store.exchange import exchange
from ray_l4.store.tables import COLUMNS, names_checksum
from ray_l4.store.unwritable import naming_unwritable

if TYPE_CHECKING:
    import pyarrow as pa

_LEFT = re.compile(r"\.(.+)\.[0-9]+(-[0-9a-f]{8})?\.(part|old|gone)")
"""Names of temporary files and folders; those of earlier versions have no random part, and are never put back."""
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` write a temporary file next to ``path``, then rename it to ``path``."""
    with naming_unwritable(path):
        temporary = _beside(path, "part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_file(path, lambda temporary: _write_utf8(temporary, text))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically, with a checksum for each of its pages and one of the names of its columns."""
    import pyarrow.parquet as pq  # slow to import, and most commands write no table

    sealed = table.replace_schema_metadata({**(table.schema.metadata or {}), COLUMNS: names_checksum(table.schema)})
    write_file(path, lambda temporary: pq.write_table(sealed, temporary, write_page_checksum=True))


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder next to ``path``, then rename it to ``path``, replacing an older one."""
    temporary = _beside(path, "part")
    with naming_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            write(temporary)
            for file in temporary.rglob("*"):
                flush(file)
            flush(temporary)
            _replace_folder(temporary, path)
            flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``. An older folder there, or a part of it, is then where ``temporary`` was."""
    if not path.exists():
        temporary.replace(path)
    elif not exchange(temporary, path):
        older = _beside(path, "old")
        path.replace(older)  # if the process ends now, ``finish_replacements`` puts it back
        try:
            temporary.replace(path)
        except OSError:
            older.replace(path)
            raise
        shutil.rmtree(older)


def finish_replacements(folder: Path) -> None:
    """Put back, in ``folder`` and below, what a process that ended while it replaced a folder had moved away.

    Whatever else such processes left is removed. Only for the one process that writes there.
    """
    for left in list(folder.rglob(".*")):
        name = _LEFT.fullmatch(left.name)
        if name is None:
            continue
        path = left.with_name(name[1])
        if name[2] and name[3] == "old" and left.is_dir() and not path.exists():
            left.replace(path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def remove_if_there(path: Path) -> None:
    """Remove a folder, and up to two around it that it leaves empty. Under its name it is whole or gone."""
    if not path.is_dir():
        return
    gone = _beside(path, "gone")
    with naming_unwritable(path):
        path.replace(gone)
        shutil.rmtree(gone)
        for parent in list(path.parents)[:2]:
            if any(parent.iterdir()):
                return
            parent.rmdir()


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return what ``pattern`` matches in ``folder``, in order; nothing that is hidden.

    Another process may remove folders meanwhile, with which ``Path.glob`` of Python 3.11 raises FileNotFoundError.
    """
    return [folder / name for name in sorted(glob.glob(pattern, root_dir=folder))]  # noqa: PTH207


def _beside(path: Path, kind: str) -> Path:
    """Return a new name beside ``path``: processes of other nodes may write into the same folder."""
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Force a file, or the names in a folder, to disk. Otherwise a power failure could leave an empty file, or none."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_SYNC:  # some file systems cannot do so for folders
            raise
    finally:
        os.close(opened)
