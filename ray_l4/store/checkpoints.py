"""Checkpoints on disk: those of a run directory, and the run that a checkpoint belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import matching
from ray_l4.store.run_directory import Cell, RunDirectory

ADAPTER_CONFIG = "adapter_config.json"
MODEL_FILES = ("config.json", ADAPTER_CONFIG)
"""Files by which a folder is recognised as a model: ordinary weights, or adapters."""
_PLACE = re.compile(r"stage-(\d+)/epoch-(\d+)/student-(\d+)")


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint in a run directory."""

    stage: int
    epoch: int
    student: int
    run: RunDirectory = field(compare=False)

    @property
    def folder(self) -> Path:
        """The folder of the model."""
        return self.run.checkpoint(self.stage, self.epoch, self.student)

    @property
    def name(self) -> str:
        """The name from which the seed of sampled answers follows."""
        return self.cell("").checkpoint

    def cell(self, task: str) -> Cell:
        """Return the position of this checkpoint's score on ``task``."""
        return Cell(self.stage, self.epoch, self.student, task)


@dataclass(frozen=True)
class Wanted:
    """Which checkpoints of a run are asked for. What is None is not restricted."""

    stage: int | None = None
    epoch: int | None = None
    student: int | None = None

    def includes(self, found: Checkpoint) -> bool:
        """Return whether a checkpoint is among those asked for."""
        pairs = ((self.stage, found.stage), (self.epoch, found.epoch), (self.student, found.student))
        return all(own is None or own == theirs for own, theirs in pairs)

    def __str__(self) -> str:
        parts = (("stage", self.stage), ("epoch", self.epoch), ("student", self.student))
        return ", ".join(f"{name} {number}" for name, number in parts if number is not None)


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model or adapters."""
    return any((folder / name).is_file() for name in MODEL_FILES)


def checkpoint_at(folder: Path) -> Checkpoint | None:
    """Return the checkpoint that ``folder`` is in the directory of a run; None if it is a model of no run."""
    path = folder.resolve()
    if len(path.parents) <= 3:
        return None
    place = _PLACE.fullmatch("/".join(path.parts[-3:]))
    root = path.parents[3]
    if place is None or path.parents[2].name != "checkpoints" or not (root / "config.yaml").is_file():
        return None
    stage, epoch, student = map(int, place.groups())
    return Checkpoint(stage, epoch, student, RunDirectory(root))


def checkpoints(run: RunDirectory) -> list[Checkpoint]:
    """Return all checkpoints in a run directory, in order."""
    paths = matching(run.path / "checkpoints", "stage-*/epoch-*/student-*")
    places = [place for path in paths if (place := _PLACE.fullmatch("/".join(path.parts[-3:]))) and is_model(path)]
    numbers = [tuple(map(int, place.groups())) for place in places]
    return [Checkpoint(stage, epoch, student, run) for stage, epoch, student in sorted(numbers)]


def last_checkpoints(run: RunDirectory, wanted: Wanted, every_stage: bool) -> list[Checkpoint]:
    """Return every student's last checkpoint among those that are ``wanted``; of a finished stage, its result.

    ``every_stage``: the last one of each stage, for models that are trained independently of each other. Unless a stage
    is named, only finished ones count. Raises RunDirectoryError if there is no such checkpoint.
    """
    done = run.state().stages_done
    on_disk = checkpoints(run)
    finished = on_disk if wanted.stage is not None else [found for found in on_disk if found.stage < done]
    if not finished:
        raise RunDirectoryError(
            f"{run.path}: no stage of this run has finished, so it has no checkpoint yet. "
            f"Wait for one, or go on with the run: ray-l4 resume {run.path}"
            if not done
            else f"{run.path}: holds no checkpoints, although {done} of its stages have finished"
        )
    chosen = [found for found in finished if wanted.includes(found)]
    if not chosen:
        raise RunDirectoryError(f"{run.path}: has no checkpoint of {wanted}. It has those of {_listed(finished)}.")
    if wanted.epoch is None:
        experiment = run.experiment()
        results = [
            found for found in chosen if found.epoch == run.result_epoch(found.stage, experiment.epochs_of(found.stage))
        ]
        chosen = results or chosen  # of a stage under way there is no result yet
    last = {(found.stage if every_stage else 0, found.student): found for found in chosen}  # the last one stays
    return [last[key] for key in sorted(last)]


def _listed(found: Sequence[Checkpoint]) -> str:
    """Return the numbers of stages, epochs and students that there are, for a message."""
    kinds = (("stage", "stages"), ("epoch", "epochs"), ("student", "students"))
    numbers = [sorted({getattr(each, kind) for each in found}) for kind, _ in kinds]
    return "; ".join(
        f"{several if len(own) > 1 else one} {', '.join(map(str, own))}"
        for (one, several), own in zip(kinds, numbers, strict=True)
    )
