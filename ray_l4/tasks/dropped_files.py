"""Files that a person put into the inbox: whatever is new in them becomes segments; the files are left alone.

A file is read when nobody writes it any more, and again whenever it has changed. One that cannot be read as a whole is
reported, and nothing of it is taken.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.store.inbox.example import Example, now
from ray_l4.store.inbox.inbox import Inbox, Kind
from ray_l4.store.inbox.places import TASK_FILE, inbox_of
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.custom import read_file
from ray_l4.tasks.inbox_tasks import InboxTask, InboxTasks
from ray_l4.tasks.rows import BadRecords
from ray_l4.tasks.schema import build_table
from ray_l4.tasks.source import Source

log = logging.getLogger(__name__)

SETTLED, SETTLED_IN_A_LINE = 2.0, 30.0
"""Seconds since the last change from which a file counts as written: in general, and if its last line has no end."""
EXPECTED = "*.jsonl, *.csv, *.tsv (plain, .gz or .bz2) or *.parquet"
_READABLE = re.compile(r".+(\.(jsonl|csv|tsv)(\.gz|\.bz2)?|\.parquet)", re.IGNORECASE)
_TEMPORARY = re.compile(r"\..*|.*~|#.*#|.*\.(part|partial|tmp|temp|swp|crdownload|filepart|download)", re.IGNORECASE)
_TESTS = "test."
_AT_ONCE = 5_000
"""Examples of a segment."""

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""


@dataclass
class _Seen:
    """What is known of a file."""

    stamp: Stamp
    since: float
    """Time at which it was first seen so, of a clock that is never set."""
    done: bool = False
    problem: str | None = None


@dataclass
class DroppedFiles:
    """The files of one inbox. Used by one process; of several threads, one reads."""

    run: RunDirectory
    inbox: Inbox
    _seen: dict[Path, _Seen] = field(default_factory=dict)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def collect(self, known: InboxTasks, data: DataConfig) -> list[str]:
        """Store what is new in the files of ``known`` tasks, and return what is wrong with others.

        Raises RunDirectoryError if the storage refuses it, or another process writes to the inbox for too long.
        """
        with self._reading:
            problems = [*known.problems, *_strays(inbox_of(self.run.path))]
            for task in known.tasks.values():
                try:
                    found = [self._look_at(path, task, data) for path in _files(task.folders)]
                    problems += [problem for problem in found if problem]
                except OSError as error:
                    problems.append(f"{error.filename}: cannot be read ({error.strerror}).")
            return [*problems, *self.inbox.damaged()]

    def _look_at(self, path: Path, task: InboxTask, data: DataConfig) -> str | None:
        """Read a file if it is time to. Returns what is wrong with it, if anything."""
        if not _READABLE.fullmatch(path.name):
            return f"{path}: not read; expected {EXPECTED}."
        stamp = _stamp(path)
        if stamp is None:
            return None
        seen = self._seen.get(path)
        if seen is None or seen.stamp != stamp:
            seen = self._seen[path] = _Seen(stamp, time.monotonic())
        if not seen.done and _is_settled(path, seen):
            try:
                self._take(path, task, data)
                seen.problem = None
            except DataError as error:
                seen.problem = str(error)
            seen.done = _stamp(path) == stamp
        return seen.problem

    def _take(self, path: Path, task: InboxTask, data: DataConfig) -> None:
        kind: Kind = "tests" if path.name.startswith(_TESTS) else "segments"
        if kind == "tests" and not task.is_new:
            return  # its tests were decided on when it was begun
        examples = list(read_examples(path, task.config, data))
        added = 0
        for start in range(0, len(examples), _AT_ONCE):
            receipts = self.inbox.add(task.config.name, examples[start : start + _AT_ONCE], kind)
            added += sum(not receipt.duplicate for receipt in receipts)
        log.info("%s: %d examples, %d of them new", path, len(examples), added)


def read_examples(path: Path, task: TaskConfig, data: DataConfig) -> Iterator[Example]:
    """Yield the examples of a file, read as own data of the task. Raises DataError if it cannot be read as a whole."""
    source = Source(task.model_copy(update={"path": path.parent, "dataset": None}), "train", data)
    before, bad = _stamp(path), BadRecords(str(path), data.max_bad_fraction)
    table = build_table(task.name, read_file(path, source, bad), bad)
    if _stamp(path) != before:
        raise DataError(f"{path}: changed while it was read; it is read again once it is written.")
    when = now()
    for start in range(0, table.num_rows, _AT_ONCE):
        for row in table.slice(start, _AT_ONCE).to_pylist():
            answers = tuple(row["references"])
            yield Example(row["context"], row["question"], answers, None, path.name, when, row["meta"])


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name != TASK_FILE and not _TEMPORARY.fullmatch(path.name):
                yield path


def _strays(inbox: Path) -> list[str]:
    """Return a line for each file that is in no task's folder."""
    found = sorted(inbox.iterdir()) if inbox.is_dir() else []
    strays = [path for path in found if path.is_file() and _READABLE.fullmatch(path.name)]
    return [f"{path}: in no task's folder; move it into {inbox}/TASK/." for path in strays if path.name[0] != "."]


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _is_settled(path: Path, seen: _Seen) -> bool:
    """Return whether a file has not been changed for so long that nobody writes it any more."""
    quiet = max(time.time() - seen.stamp[1] / 1e9, time.monotonic() - seen.since)
    return quiet >= (SETTLED if _ends_whole(path) else SETTLED_IN_A_LINE)


def _ends_whole(path: Path) -> bool:
    """Return whether the last line of a plain text file has an end. Other files tell themselves if they are cut off."""
    if path.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        return True
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1))
            return file.read(1) == b"\n"
    except OSError:
        return True  # reading it says what is wrong
