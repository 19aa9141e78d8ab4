"""What a service knows of its run beside the model: the inbox, and the run at this moment."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import RunDirectoryError, first_line
from ray_l4.report.run_files import Headline
from ray_l4.serve.overview import overview
from ray_l4.serve.overview_types import Overview
from ray_l4.serve.run_reading import read_headline
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.inbox import Inbox, Receipt
from ray_l4.store.run_directory import Cell, RunDirectory
from ray_l4.tasks.dropped_files import DroppedFiles
from ray_l4.tasks.inbox_tasks import InboxTask, InboxTasks, add_task, inbox_tasks

log = logging.getLogger("ray_l4.serve")

FRESH = 1.0
"""Seconds for which what was read from the run directory is used again."""
LOOK_EVERY = 2.0
"""Seconds between two looks at the files that were put into the inbox."""

Value = TypeVar("Value")


@dataclass
class _Kept(Generic[Value]):
    """A value that is computed again when it is older than ``FRESH`` seconds."""

    compute: Callable[[], Value]
    _value: Value | None = None
    _until: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, anew: bool = False) -> Value:
        with self._lock:
            if self._value is None or anew or time.monotonic() >= self._until:
                self._until = time.monotonic() + FRESH  # before it is computed: ``expire`` may come meanwhile
                self._value = self.compute()
            return self._value

    def expire(self) -> None:
        """Let the next one who asks compute it again."""
        self._until = 0.0


class RunSide:
    """The inbox of a run and its overview, for the threads of one service."""

    def __init__(self, run: RunDirectory) -> None:
        """Begin without reading anything."""
        self._run = run
        self._inbox = Inbox(run.path)
        self._dropped = DroppedFiles(run, self._inbox)
        self._problems: list[str] = []
        self._looking, self._looked = threading.Lock(), -LOOK_EVERY
        self._scores = _Scores()
        self._settings: tuple[tuple[int, int], ExperimentConfig] | None = None
        self._tasks = _Kept(lambda: inbox_tasks(run, self._experiment()))
        self._overview = _Kept(lambda: overview(run, self._problems, self._scores))

    def overview(self) -> Overview:
        """Return the run at this moment. Raises RunDirectoryError if a record is damaged."""
        return self._overview.get()

    def task(self, name: str) -> InboxTask | None:
        """Return a task that examples may be given for; None if there is none of this name."""
        return self._tasks.get().tasks.get(name) or self.tasks().tasks.get(name)

    def tasks(self) -> InboxTasks:
        """Return all tasks that examples may be given for, as they are now."""
        return self._tasks.get(anew=True)

    def add_task(self, name: str, metric: str | None, question: str | None) -> bool:
        """Begin a new task. Raises as ``tasks.inbox_tasks.add_task``."""
        created = add_task(self._run, self._experiment(), name, metric, question)
        self._overview.expire()
        return created

    def add(self, task: str, example: Example) -> tuple[Receipt, int]:
        """Store an example; return its receipt once it is on disk, and how many examples of the task wait.

        Raises as ``Inbox.add``.
        """
        (receipt,) = self._inbox.add(task, [example])
        self._overview.expire()
        return receipt, self._inbox.waiting(task)

    def look_at_files(self) -> None:
        """Store what is new in the files that were put into the inbox, unless that was done a moment ago."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._looked >= LOOK_EVERY:
                self._problems = self._dropped.collect(self.tasks(), self._experiment().data)
                self._looked = time.monotonic()
        except RunDirectoryError as error:  # told on the page; looked at again
            self._problems = [first_line(error)]
            log.warning("the files of the inbox are not read: %s", first_line(error))
        finally:
            self._looking.release()

    def _experiment(self) -> ExperimentConfig:
        """Return the experiment, which another process may extend."""
        found = (self._run.path / "config.yaml").stat()
        stamp = (found.st_mtime_ns, found.st_ino)
        if self._settings is None or self._settings[0] != stamp:
            self._settings = (stamp, self._run.experiment())
        return self._settings[1]


class _Scores:
    """Reads scores, each once for as long as its file stays the same."""

    def __init__(self) -> None:
        self._read: dict[Cell, tuple[int, Headline | None]] = {}

    def __call__(self, run: RunDirectory, cell: Cell) -> Headline | None:
        path = run.path / "scores" / f"{cell.name}.json"
        try:
            stamp = path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if cell not in self._read or self._read[cell][0] != stamp:
            self._read[cell] = (stamp, read_headline(run, cell))
        return self._read[cell][1]
