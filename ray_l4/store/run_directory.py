"""The run directory: what a run leaves behind, and all that is needed to go on with it.

::

    config.yaml  cluster.yaml      the resolved experiment and profile
    manifest.json                  the command, versions and machine that began the run
    state.json                     how far the run has come (the last thing written after a stage)
    tokenizer/                     tokeniser with the task tokens
    checkpoints/STAGE/EPOCH/student-N/   Hugging Face folders
    replay/STAGE.parquet           what was generated, kept and dropped
    teachers/                      the run that trained the teachers, if the method has any
    distil/TASK.parquet            answers of a task's teacher to its training examples
    guards/STAGE.student-N.safetensors   importance of weights, if the method measures it
    timeline.parquet               who did what from when to when
    steps/STAGE.EPOCH.parquet      figures of every step
    scores/CELL.json  predictions/CELL.parquet   one per checkpoint and task
    tensorboard/                   event files
    summary.json  report.md        the result

One process writes here (the coordinator), so no two nodes have to share a disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml, load_cluster, load_experiment
from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import write_json, write_text


class RunState(BaseModel):
    """How far a run has come. All peers share what it names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages_done: int = 0
    """Stages whose checkpoints of all students are on disk."""
    wall_seconds: float = 0.0
    """Time the run has taken up to here, without pauses."""
    peak_memory_bytes: dict[str, int] = {}
    """Largest resident (or GPU) memory of each actor so far."""
    restarts: int = 0
    """How often a stage was learned again because a student was lost."""
    lost_students: dict[int, str] = {}
    """Students without which the run went on, and how each was lost."""


@dataclass(frozen=True, order=True)
class Cell:
    """One score: a student's checkpoint, and the task it was asked about."""

    stage: int
    epoch: int
    student: int
    task: str

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint."""
        return f"stage-{self.stage}.epoch-{self.epoch}.student-{self.student}"

    @property
    def name(self) -> str:
        """Name of the cell and of its files; the task is quoted, because one's own may be called anything, also a/b."""
        return f"{self.checkpoint}.{quote(self.task, safe='')}"


_CELL = re.compile(r"stage-(\d+)\.epoch-(\d+)\.student-(\d+)\.(.+)\.json")


class RunDirectory:
    """Paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls, path: Path, experiment: ExperimentConfig, cluster: ClusterConfig, manifest: dict[str, Any]
    ) -> RunDirectory:
        """A new run directory. Raises RunDirectoryError if something is there already."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunDirectoryError(
                f"{path}: is there already and not empty. Choose another --run-dir, "
                f"or go on with that run: ray-l4 resume {path}"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot be made ({error.strerror})") from error
        run = cls(path)
        write_text(path / "cluster.yaml", dump_yaml(cluster))
        write_json(path / "manifest.json", manifest)
        run.save_state(RunState())
        write_text(path / "config.yaml", dump_yaml(experiment))  # last: it marks the directory as a run
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory. Raises RunDirectoryError if ``path`` is none."""
        if not (path / "config.yaml").is_file():
            raise RunDirectoryError(f"{path}: not a run directory (no config.yaml in it)")
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process. Raises RunDirectoryError if another one has it."""
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise RunDirectoryError(f"{self.path}: in use by {holder}. Wait for it or end it first.") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def experiment(self) -> ExperimentConfig:
        """The experiment as it was resolved when the run began."""
        return load_experiment(self.path / "config.yaml")

    def cluster(self) -> ClusterConfig:
        """The profile the run began with."""
        return load_cluster(self.path / "cluster.yaml")

    def state(self) -> RunState:
        """How far the run has come. Raises RunDirectoryError if the record is damaged."""
        path = self.path / "state.json"
        try:
            return RunState.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise RunDirectoryError(f"{path}: unreadable ({type(error).__name__}); the run cannot go on") from error

    def save_state(self, state: RunState) -> None:
        """Record how far the run has come."""
        write_json(self.path / "state.json", state.model_dump())

    def checkpoint(self, stage: int, epoch: int, student: int) -> Path:
        """Folder of a student's checkpoint after ``epoch`` (counted from 1) of ``stage`` (from 0)."""
        return self.path / "checkpoints" / f"stage-{stage}" / f"epoch-{epoch}" / f"student-{student}"

    def teachers(self) -> Path:
        """The run directory in which this run's teachers were trained."""
        return self.path / "teachers"

    def answers(self, task: str) -> Path:
        """The file of the answers that a task's teacher gave to its training examples."""
        return self.path / "distil" / f"{quote(task, safe='')}.parquet"

    def log(self, name: str) -> Path:
        """Return the path of a log file."""
        return self.path / "logs" / f"{name}.log"

    def guard(self, stage: int, student: int) -> Path:
        """The file of what a student's guard knows after ``stage``."""
        return self.path / "guards" / f"stage-{stage}.student-{student}.safetensors"

    def scores(self) -> dict[Cell, dict[str, Any]]:
        """All scores on disk. Raises RunDirectoryError if one of them is damaged."""
        found: dict[Cell, dict[str, Any]] = {}
        for path in sorted((self.path / "scores").glob("stage-*.json")):
            match = _CELL.fullmatch(path.name)
            if match:
                found[Cell(int(match[1]), int(match[2]), int(match[3]), unquote(match[4]))] = read_json(path)
        return found

    def step_figures(self) -> Sequence[dict[str, Any]]:
        """Figures of every step and student on disk, in order."""
        rows = [row for path in (self.path / "steps").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        return sorted(rows, key=lambda row: (row["stage"], row["step"], row["student"]))

    def summary(self) -> dict[str, Any]:
        """The result of a finished run. Raises RunDirectoryError if it has not finished."""
        if not (self.path / "summary.json").is_file():
            raise RunDirectoryError(
                f"{self.path}: has no summary.json: the run did not finish. Go on with it: ray-l4 resume {self.path}"
            )
        return read_json(self.path / "summary.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run. Raises RunDirectoryError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: cannot be read as JSON ({error})") from error
