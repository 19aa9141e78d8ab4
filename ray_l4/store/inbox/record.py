"""The record of an inbox: which segments were given to which stage. One write of it is one assignment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ray_l4.store.inbox.places import RECORD, data_folder, inbox_of
from ray_l4.store.inbox.segments import Segment
from ray_l4.store.record_types import MOST, Record
from ray_l4.store.run_directory import read_record
from ray_l4.store.sealed import write_record


class Assignment(BaseModel):
    """Segments of one task that one stage learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: Annotated[int, Field(ge=1, le=MOST)]
    task: str
    segments: list[str]
    """Names of the files of examples."""
    tests: list[str] = []
    """Names of the files of test examples, for a task that the run did not know."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the examples that become tests (``held_out.py``), for such a task without test examples."""
    seed: int = 0
    """Seed of that choice."""
    when: str
    failed: str | None = None
    """Why it was set aside, because no stage could learn it; None if it was not."""

    def folder(self, run: Path) -> Path:
        """Return the folder of what the stage learns."""
        return data_folder(run, self.number, self.task)


class Assignments(Record):
    """The contents of ``learned.json``."""

    assignments: list[Assignment]


def assignments(run: Path) -> list[Assignment]:
    """Return all assignments in their order. Raises RunDirectoryError if the record is damaged."""
    path = inbox_of(run) / RECORD
    if not path.is_file():
        return []
    return Assignments.model_validate(read_record(path, Assignments)).assignments


def save(run: Path, made: Sequence[Assignment]) -> None:
    """Write the record. Raises UnwritableError if the storage refuses it; then nothing is assigned."""
    write_record(inbox_of(run) / RECORD, {"assignments": [assignment.model_dump() for assignment in made]})


def numbers_given(run: Path, task: str, kind: str) -> list[int]:
    """Return the numbers of a task's assigned segments, whether or not their files are still there."""
    own = [assignment for assignment in assignments(run) if assignment.task == task]
    names = [name for each in own for name in (each.tests if kind == "tests" else each.segments)]
    return [segment.number for name in names if (segment := Segment.of(name)) is not None]
