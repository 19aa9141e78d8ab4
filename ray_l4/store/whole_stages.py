"""How many finished stages of a run can be built on, and the way back to the last one that is whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.atomic import matching, remove_if_there
from ray_l4.store.checkpoints import checkpoints
from ray_l4.store.checksums import remove_sums
from ray_l4.store.general import general_files, read_general
from ray_l4.store.promotion import withdraw
from ray_l4.store.record_types import GeneralRecord, Score, Validation
from ray_l4.store.run_directory import START, TOGETHER, Cell, RunDirectory, read_record
from ray_l4.store.weight_files import find_damage, find_damaged_file

_STAGE = re.compile(r"stage-(\d+)(\..+)?")
_BY_STAGE = ("scores", "predictions", "general", "steps", "validation", "guards", "states")
"""Folders whose files are named by stages. Replay is too, but that of a stage is made by the one before it."""


@dataclass(frozen=True)
class Needed:
    """What the files of a finished stage have to be, so that the next one can begin with them."""

    scored: Sequence[Collection[str]]
    """The tasks that each stage is scored on, and ``GENERAL`` if there is a general text."""
    students: Collection[int]
    """Those that are not lost."""
    epochs: Sequence[int]
    """Number of epochs of each stage."""
    validated: bool
    guarded: bool
    """Whether a guard's state is written after each stage."""
    independent: bool
    """Whether each stage trains a model of its own: then all are needed, not the last alone."""


@dataclass(frozen=True)
class Whole:
    """How far a run can be built on."""

    stages: int
    damage: str | None
    """What is wrong with the first stage after them that was finished; None if all are whole."""


def whole_stages(run: RunDirectory, needed: Needed, done: int) -> Whole:
    """Return how many of the ``done`` finished stages are whole, without a damaged one that is needed.

    Needed are the last of them, and those that lack scores. Raises RunDirectoryError if a file cannot be read.
    """
    found: str | None = None
    scores = {*run.scores(), *read_general(run)} if done else set()
    try:
        for stage in range(done):
            if needed.independent:
                found = _damaged_result(run, needed, stage)
            else:
                found = _unscorable(run, needed, stage, scores)
            if found is not None:
                done = stage
                break
        while done and not needed.independent and (how := _damaged_result(run, needed, done - 1)) is not None:
            found, done = found or how, done - 1
    except OSError as error:
        raise RunDirectoryError(
            f"{error.filename or run.path}: cannot be read ({error.strerror}). If its storage answers again, resume "
            "the run. If the file is lost, remove it: a resumed run then goes back to the stage before it."
        ) from error
    return Whole(done, found)


def damaged_scores(run: RunDirectory) -> Iterator[tuple[Path, DamagedError]]:
    """Yield the scores that are damaged and can be taken again, since the checkpoint is there."""
    for path, cell in run.score_files():
        try:
            read_record(path, Score)
        except DamagedError as error:
            folder = run.checkpoint(cell.stage, cell.epoch, cell.student)
            if folder.is_dir() or (cell.student == TOGETHER and matching(folder.parent, "student-*")):
                yield path, error
    for path, cell in general_files(run):
        try:
            read_record(path, GeneralRecord)
        except DamagedError as error:
            if cell.stage == START or run.checkpoint(cell.stage, cell.epoch, cell.student).is_dir():
                yield path, error


def return_to(run: RunDirectory, stages: int, save: Callable[[], None]) -> None:
    """Remove what was learned after the first ``stages`` stages; ``save`` writes that these are done.

    A process that ends meanwhile finds the damaged checkpoint again, which goes last.
    """
    (run.path / "summary.json").unlink(missing_ok=True)
    for folder in _BY_STAGE:
        _remove(_of_stages(run.path / folder, stages))
    _remove(_of_stages(run.path / "replay", stages + 1))
    withdraw(run, stages)
    save()
    for path in _of_stages(run.path / "checkpoints", stages):
        for student in matching(path, "epoch-*/student-*"):
            remove_if_there(student)


def _damaged_result(run: RunDirectory, needed: Needed, stage: int) -> str | None:
    """Return which file that the next stage begins with is damaged, and how."""
    try:
        if needed.validated:
            read_record(run.validation(stage), Validation)
        epoch = run.result_epoch(stage, needed.epochs[stage])
    except DamagedError as error:
        return str(error)
    for student in sorted(needed.students):
        how = _damaged_checkpoint(run.checkpoint(stage, epoch, student))
        if how is None and needed.guarded:
            guard = run.guard(stage, student)
            why = find_damage(guard) if guard.is_file() else "is missing"
            how = None if why is None else f"{guard} {why}"
        if how is not None:
            return how
    return None


def _damaged_checkpoint(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"{folder} is missing"
    if not matching(folder, "*.safetensors"):
        return f"{folder / 'model.safetensors'} is missing"
    return find_damaged_file(folder)


def _unscorable(run: RunDirectory, needed: Needed, stage: int, scores: Collection[Cell]) -> str | None:
    """Return how a checkpoint is damaged whose scores are missing."""
    for found in checkpoints(run):
        lacks = any(found.cell(task) not in scores for task in needed.scored[stage])
        if found.stage == stage and found.student in needed.students and lacks:
            how = find_damaged_file(found.folder)
            if how is not None:
                return how
    return None


def _of_stages(folder: Path, first: int) -> list[Path]:
    named = ((path, _STAGE.fullmatch(path.name)) for path in matching(folder, "stage-*"))
    return [path for path, name in named if name and int(name[1]) >= first]


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        remove_sums(folder, {path.name for path in paths if path.parent == folder})
