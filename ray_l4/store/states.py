"""States of a stage under way: from the newest one that is whole, a run continues after a failure.

::

    states/stage-S.steps-N/        of a stage, after N steps, added up over its students
        student-K.rank-R.safetensors   weights, optimiser state and position (slot K)
        figures.parquet                figures of the epoch under way, up to the state
        position.json                  epoch, next step of each student, validation so far
        SHA256SUMS                     checksums of these files
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.atomic import matching, remove_if_there, write_folder, write_table
from ray_l4.store.checksums import damaged_in, write_sums
from ray_l4.store.records import steps_table, undamaged, write_bytes
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.store.sealed import write_record
from ray_l4.store.tables import read_table

_FIGURES, _POSITION = "figures.parquet", "position.json"
_SUFFIX = ".safetensors"
_NAME = re.compile(r"stage-(\d+)\.steps-(\d+)")


@dataclass(frozen=True)
class Learning:
    """What one worker had learned of its stage."""

    slot: int
    student: int
    stage: int
    next_step: int


@dataclass(frozen=True)
class Position:
    """A moment within a stage, or within several that are learned side by side, that all students share."""

    epoch: int
    """The epoch under way, from 1. What follows its last step (validation, checkpoint) is still to be done."""
    workers: Sequence[Learning]
    validation: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    """Stage -> student -> loss, for every finished epoch."""

    @property
    def stage(self) -> int:
        """The first of the stages."""
        return min(own.stage for own in self.workers)

    @property
    def num_steps(self) -> int:
        """Steps that were learned, added up over the students."""
        return sum(own.next_step for own in self.workers)


@dataclass(frozen=True)
class State:
    """A state that was read from the disk."""

    position: Position
    figures: Sequence[Mapping[str, Any]]
    """Figures of the epoch's steps before ``position``."""
    parts: Mapping[int, Sequence[np.ndarray]]
    """Slot -> the state of each of its ranks."""


def write_state(
    run: RunDirectory,
    position: Position,
    figures: Sequence[Mapping[str, Any]],
    parts: Mapping[int, Sequence[np.ndarray]],
) -> Path:
    """Write a state, whole or not at all. Returns its folder."""
    folder = run.path / "states" / f"stage-{position.stage}.steps-{position.num_steps}"

    def fill(temporary: Path) -> None:
        for slot, ranks in parts.items():
            for rank, data in enumerate(ranks):
                write_bytes(temporary / _part(slot, rank), data)
        write_table(temporary / _FIGURES, steps_table(figures))
        ranks_of = {str(slot): len(ranks) for slot, ranks in parts.items()}
        write_record(temporary / _POSITION, asdict(position) | {"ranks": ranks_of})
        write_sums(temporary)

    write_folder(folder, fill)
    return folder


def states(run: RunDirectory, stage: int) -> list[Path]:
    """Return the folders of the states of a stage, the newest first."""
    numbered = [(int(name[2]), path) for path, name in _folders(run) if int(name[1]) == stage]
    return [path for _, path in sorted(numbered, reverse=True)]


def read_state(folder: Path) -> State:
    """Read a state. Raises DamagedError if it is damaged, RunDirectoryError if it cannot be read."""
    position, record = read_position(folder), read_json(folder / _POSITION)
    with _naming_damage(folder):
        damaged = damaged_in(folder, except_for=_SUFFIX)
        if damaged is not None:
            raise DamagedError(f"{damaged}.")
        parts = {
            int(slot): [undamaged(folder / _part(int(slot), rank)) for rank in range(int(count))]
            for slot, count in record["ranks"].items()
        }
        figures = read_table(folder / _FIGURES, ("stage", "epoch", "step", "student"), optional=None)
        if figures is None:
            raise DamagedError(f"{folder / _FIGURES} is missing.")
        return State(position, figures.to_pylist(), parts)


def read_position(folder: Path) -> Position:
    """Read the position of a state. Raises RunDirectoryError if it is damaged."""
    record = read_json(folder / _POSITION)
    with _naming_damage(folder):
        workers = [Learning(**{name: int(own[name]) for name in Learning.__annotations__}) for own in record["workers"]]
        return Position(int(record["epoch"]), workers, dict(record["validation"]))


@contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    """Within this context, raise DamagedError for whatever is wrong with the content of a state's files.

    A file that the storage does not read raises RunDirectoryError.
    """
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"{error.filename or folder}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{folder}: damaged ({type(error).__name__}: {error}).") from error


def newest_step(run: RunDirectory, stage: int) -> int:
    """Return the next step of the newest state of a stage, of the student that is least far; 0 if there is none."""
    for folder in states(run, stage):
        with suppress(RunDirectoryError):
            return min(worker.next_step for worker in read_position(folder).workers)
    return 0


def discard_states(run: RunDirectory, before_stage: int, keep: int = 0, newest: Path | None = None) -> None:
    """Remove the states of stages before ``before_stage``, and of that stage all but the newest ``keep``.

    ``newest``: the one that was written last. Those with more steps are older: they include a student that has been
    lost since. They are removed as well.
    """
    for path, name in _folders(run):
        if int(name[1]) < before_stage:
            remove_if_there(path)
    found = states(run, before_stage)
    further = 0 if newest is None else found.index(newest)
    for path in (*found[:further], *found[further + keep :]):
        remove_if_there(path)


def _folders(run: RunDirectory) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in matching(run.path / "states", "stage-*.steps-*"):
        name = _NAME.fullmatch(path.name)
        if name:
            yield path, name


def _part(slot: int, rank: int) -> str:
    return f"student-{slot}.rank-{rank}{_SUFFIX}"
