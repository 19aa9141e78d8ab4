"""Warnings of the training of a run: each is kept once, so that a resumed run does not repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ray_l4.store.record_types import TrainingWarnings
from ray_l4.store.run_directory import RunDirectory, read_record
from ray_l4.store.sealed import write_record

_FILE = "warnings.json"


@dataclass(frozen=True)
class TrainingWarning:
    """What a user was warned of."""

    kind: str
    stage: int
    student: int
    step: int
    message: str


def read_warnings(run: RunDirectory) -> list[TrainingWarning]:
    """Return the warnings of a run, oldest first. Raises RunDirectoryError if their file is damaged."""
    path = run.path / _FILE
    if not path.is_file():
        return []
    names = TrainingWarning.__annotations__
    return [
        TrainingWarning(**{name: own[name] for name in names})
        for own in read_record(path, TrainingWarnings)["warnings"]
    ]


def write_warnings(run: RunDirectory, warnings: Sequence[TrainingWarning]) -> None:
    """Write all warnings of a run."""
    write_record(run.path / _FILE, {"warnings": [asdict(own) for own in warnings]})
