"""Where the files of an inbox are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from ray_l4.store.names import file_part

TASK_FILE = "task.yaml"
"""Settings of a task that the run does not know yet."""
RECORD = "learned.json"
_DATA = re.compile(r"inbox-(\d{1,9})\.")
PATIENCE = 20.0
"""Seconds to wait for another process that writes to the inbox."""


def inbox_of(run: Path) -> Path:
    """Return the inbox of the run directory ``run``."""
    return run / "inbox"


def task_folder(run: Path, task: str) -> Path:
    """Return the folder of a task's examples."""
    return inbox_of(run) / file_part(task)


def shelf_folder(run: Path, task: str, kind: str) -> Path:
    """Return the folder of a task's segments of one kind."""
    return task_folder(run, task) / kind


def task_folders(run: Path, known: Iterable[str] = ()) -> dict[str, list[Path]]:
    """Return the folders of the inbox by the names of their tasks.

    A folder that a person named in plain letters, such as ``my task``, counts like ``my%20task``. ``known``: names that
    may be too long for a folder, which then cannot be read from it.
    """
    folder, names = inbox_of(run), {file_part(task): task for task in known}
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            found.setdefault(names.get(path.name, unquote(path.name)), []).append(path)
    return found


def data_folder(run: Path, number: int, task: str) -> Path:
    """Return the folder of what the stage of an assignment learns."""
    return run / "data" / f"inbox-{number}.{file_part(task)}"


def numbers_of_folders(run: Path) -> list[int]:
    """Return the numbers of all such folders that are there: a record that was lost gives none of them again."""
    names = (_DATA.match(path.name) for path in (run / "data").glob("inbox-*"))
    return [int(name[1]) for name in names if name is not None]
