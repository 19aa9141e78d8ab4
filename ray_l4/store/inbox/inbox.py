"""The writer of an inbox: stores examples, each once, and returns when they are on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ray_l4.errors import RunDirectoryError
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.places import PATIENCE, inbox_of, shelf_folder
from ray_l4.store.inbox.record import assignments, numbers_given
from ray_l4.store.inbox.segments import Shelf
from ray_l4.store.lock import locked
from ray_l4.store.names import make_private
from ray_l4.store.unwritable import naming_unwritable

Kind = Literal["segments", "tests"]
"""What examples are for, and the folder that they are in: to be learned, or to score a new task on."""


@dataclass(frozen=True)
class Receipt:
    """Tells that an example is on disk."""

    id: str
    duplicate: bool
    """Whether it was there before."""


@dataclass(eq=False)
class _Request:
    """Examples that one caller wants to be stored."""

    task: str
    kind: Kind
    examples: Sequence[Example]
    receipts: list[Receipt] = field(default_factory=list)
    error: BaseException | None = None
    done: bool = False


class Inbox:
    """The inbox of a run. Its threads, and several processes, may write at the same time."""

    def __init__(self, run: Path) -> None:
        """Begin for the run directory ``run``. Nothing is read before it is needed."""
        self._run = run
        self._shelves: dict[tuple[str, Kind], Shelf] = {}
        self._requests: list[_Request] = []
        self._queueing, self._writing = threading.Lock(), threading.Lock()

    def add(self, task: str, examples: Sequence[Example], kind: Kind = "segments") -> list[Receipt]:
        """Store the examples of a task that are new, and return a receipt for each once they are on disk.

        Whoever comes while a segment is written waits for it; then one of them writes the examples of all.

        Raises:
            DataError: one of the examples cannot be learned. None is stored.
            UnwritableError: the storage refuses them. What was acknowledged before is whole.
            RunDirectoryError: another process has been writing for too long.
        """
        for example in examples:
            example.check()
        request = _Request(task, kind, examples)
        with self._queueing:
            self._requests.append(request)
        with self._writing:
            if not request.done:
                with self._queueing:
                    together, self._requests = self._requests, []
                self._serve(together)
        if request.error is not None:
            raise request.error
        return request.receipts

    def waiting(self, task: str) -> int:
        """Return how many examples of a task no stage was given, of those that this process knows of.

        Raises RunDirectoryError if the record of assignments is damaged.
        """
        given = {name for each in assignments(self._run) if each.task == task for name in each.segments}
        known = dict(self._shelf(task, "segments").known)
        return sum(examples for name, examples in known.items() if name not in given)

    def damaged(self) -> list[str]:
        """Return what is wrong with the segments that this process has seen and could not read."""
        return [why for shelf in list(self._shelves.values()) for why in list(shelf.damaged.values())]

    def _serve(self, requests: Sequence[_Request]) -> None:
        """Store what several callers brought. An error of one task is that of its requests alone."""
        groups: dict[tuple[str, Kind], list[_Request]] = {}
        for request in requests:
            groups.setdefault((request.task, request.kind), []).append(request)
        for (task, kind), group in groups.items():
            try:
                self._store(task, kind, group)
            except BaseException as error:  # it is raised where each of the callers waits
                for request in group:
                    request.error = error
            finally:
                for request in group:
                    request.done = True

    def _store(self, task: str, kind: Kind, requests: Sequence[_Request]) -> None:
        new: dict[str, Example] = {}
        with holding(self._run):
            shelf = self._shelf(task, kind)
            shelf.refresh()
            known = [shelf.ids]
            if kind == "segments":  # what a task is scored on is not learned
                tests = self._shelf(task, "tests")
                tests.refresh()
                known.append(tests.ids)
            receipts = []
            for request in requests:
                for example in request.examples:
                    duplicate = example.id in new or any(example.id in ids for ids in known)
                    if not duplicate:
                        new[example.id] = example
                    receipts.append(Receipt(example.id, duplicate))
            if new:
                shelf.write(list(new.values()), numbers_given(self._run, task, kind))
        left = iter(receipts)
        for request in requests:
            request.receipts = [next(left) for _ in request.examples]

    def _shelf(self, task: str, kind: Kind) -> Shelf:
        return self._shelves.setdefault((task, kind), Shelf(shelf_folder(self._run, task, kind)))


@contextmanager
def holding(run: Path) -> Iterator[None]:
    """Hold the lock of a run's inbox, whose folder is created if there is none.

    Raises RunDirectoryError if another process holds it for too long, UnwritableError if the storage refuses.
    """
    folder = inbox_of(run)
    if not run.is_dir():
        raise RunDirectoryError(f"{run}: no such folder: the run that the inbox belongs to is gone.")
    with naming_unwritable(folder):
        make_private(folder)
    with locked(folder, patience=PATIENCE):
        yield
