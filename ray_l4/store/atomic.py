"""Atomic writes: a file or folder is written under a temporary name and renamed, so it is complete or absent.

A full disk raises RunDirectoryError, which names the file or folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_l4.store.full_disk import naming_full_disk

if TYPE_CHECKING:
    import pyarrow as pa


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` write a temporary file next to ``path``, then rename it to ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_file(path, lambda temporary: _write_utf8(temporary, text))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically, with a checksum for each of its pages."""
    import pyarrow.parquet as pq  # slow to import, and most commands write no table

    write_file(path, lambda temporary: pq.write_table(table, temporary, write_page_checksum=True))


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder next to ``path``, then rename it to ``path``, replacing an older one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write(temporary)
            for file in temporary.rglob("*"):
                _flush(file)
            _replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.replace(path)
        return
    older = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.replace(older)
    temporary.replace(path)
    shutil.rmtree(older)


def remove_if_there(path: Path) -> None:
    """Remove a folder, and up to two around it that it leaves empty. Under its name it is whole or gone."""
    if not path.is_dir():
        return
    gone = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.replace(gone)
    shutil.rmtree(gone)
    for parent in list(path.parents)[:2]:
        if any(parent.iterdir()):
            return
        parent.rmdir()


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    """Force the contents to disk before the rename. Otherwise a power failure could leave an empty file."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
