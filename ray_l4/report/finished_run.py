"""The reader of finished runs, for reports, tables and figures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, DamagedError, RunDirectoryError
from ray_l4.methods import get_method
from ray_l4.report.run_files import Headline, read_headlines, read_replay
from ray_l4.report.run_result import RunResult
from ray_l4.report.steps import Steps, read_steps
from ray_l4.store.record_types import Summary, check_record
from ray_l4.store.run_directory import Cell, RunDirectory
from ray_l4.store.tables import read_table
from ray_l4.store.warnings import read_warnings
from ray_l4.text.scarce_replay import scarce_replay

log = logging.getLogger("ray_l4.report")


@dataclass(frozen=True)
class FinishedRun(RunResult):
    """A finished run: its result, and the files of its directory, which are read when they are first asked for.

    A file that early versions did not write reads as None if it is missing. A damaged file raises RunDirectoryError.
    """

    directory: RunDirectory

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        """Open a run directory. Raises RunDirectoryError if ``path`` is none, or if its run has not finished."""
        directory = RunDirectory.open(path)
        summary = directory.summary()
        check_record(path / "summary.json", summary, Summary)
        return cls(summary, directory)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @cached_property
    def experiment(self) -> ExperimentConfig:
        """The resolved experiment. Raises ConfigError if it is not one that this version can load."""
        return self.directory.experiment()

    @property
    def epochs(self) -> list[int]:
        """The number of epochs of every stage."""
        return [self.experiment.epochs_of(stage) for stage in range(len(self.stages))]

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The command, versions and machine that began the run."""
        return self.directory.manifest()

    @property
    def scale(self) -> float | None:
        """Share of its protocol's examples and epochs that the run had; None if the manifest does not say."""
        scale: float | None = self.manifest.get("scale")
        return scale

    @property
    def scale_note(self) -> str:
        """The end of a title that tells a run on a reduced scale from a full one; empty for a run of full size."""
        return "" if self.scale in (None, 1) else f", scaled to {self.scale:g} of its examples and epochs"

    @cached_property
    def _headlines(self) -> Mapping[Cell, Headline]:
        return read_headlines(self.directory)

    @cached_property
    def scores(self) -> Mapping[Cell, float]:
        """The headline score of every scored checkpoint and task."""
        return {cell: headline.value for cell, headline in self._headlines.items()}

    @cached_property
    def metrics(self) -> Mapping[str, str]:
        """Task -> name of the metric that gives its headline score."""
        return {cell.task: headline.metric for cell, headline in self._headlines.items()}

    def trajectory(self, student: int) -> dict[tuple[int, int], dict[str, float]]:
        """Return a student's scores in the order of training: (stage, epoch) of a checkpoint -> task -> score."""
        found: dict[tuple[int, int], dict[str, float]] = {}
        for cell, headline in sorted(self._headlines.items()):
            if cell.student == student:
                found.setdefault((cell.stage, cell.epoch), {})[cell.task] = headline.value
        return found

    def scores_of_epochs(self, student: int) -> list[list[float | None]]:
        """Return a row of scores for every scored checkpoint, a column for each task: rows beside a score matrix.

        Raises ConfigError if the run scored only the ends of its tasks.
        """
        if self.experiment.evaluation.when != "epoch":
            raise ConfigError(
                f"{self.path}: has no scores of single epochs (evaluation.when: {self.experiment.evaluation.when}); "
                "the best score of any epoch needs a run with evaluation.when: epoch"
            )
        return [[scores.get(task) for task in self.tasks] for scores in self.trajectory(student).values()]

    def final_cell(self, student: int, task: str) -> Cell:
        """Return the cell whose score is the final one of a task, whether it was scored or not."""
        stage = get_method(self.method).kind.final_stage(task, self.learned)
        return Cell(stage, self.directory.result_epoch(stage, self.experiment.epochs_of(stage)), student, task)

    def last_scored_cell(self, student: int, task: str) -> Cell | None:
        """Return the cell of a student's last checkpoint that was scored on a task; None if there is none."""
        cells = (cell for cell in self._headlines if cell.student == student and cell.task == task)
        return max(cells, default=None)

    @cached_property
    def steps(self) -> Steps | None:
        """Figures of every step; None for a run without any."""
        return read_steps(self.path)

    def predictions(self, cell: Cell) -> pa.Table | None:
        """Return the answers behind a score: ``sample_id``, ``prediction``, ``references`` and, except in early runs,
        ``score`` in percent, and the start of ``context`` and ``question``."""
        path = self.predictions_path(cell)
        optional = ("score", "context", "question")
        return read_table(path, ("sample_id", "prediction", "references"), optional)

    def predictions_path(self, cell: Cell) -> Path:
        """Return the file that ``predictions`` reads."""
        return self.path / "predictions" / f"{cell.name}.parquet"

    def replayed_examples(self, stage: int) -> pa.Table | None:
        """Return the examples that were replayed in a stage: ``index``, ``task``, ``valid``, ``reason`` (why it is not
        valid), ``text`` and, except in early runs, ``student``, its author."""
        return read_replay(self.directory, stage, ("index", "task", "valid", "reason", "text"), optional=("student",))

    def warnings(self, stage: int) -> list[str]:
        """Return a warning for each earlier task of which few examples could be replayed in a stage."""
        table = self.replayed_examples(stage)
        return [] if table is None else scarce_replay(table.drop_columns(["text"]).to_pylist())

    @cached_property
    def training_warnings(self) -> list[str]:
        """What the user was warned of while the run trained: students that diverged, peers that collapsed."""
        try:
            return [own.message for own in read_warnings(self.directory)]
        except DamagedError as error:  # no result
            return [f"no warnings of the training are known: {error}"]

    def timeline(self) -> pa.Table | None:
        """Return the activities: ``lane`` (process), ``kind`` (of activity), ``start`` and ``end`` (UNIX seconds)."""
        try:
            return read_table(self.path / "timeline.parquet", ("lane", "kind", "start", "end"))
        except DamagedError as error:  # no result
            log.warning("%s The timeline is left out.", error)
            return None

    def teacher_answers(self, task: str) -> pa.Table | None:
        """Return the ``answer`` of a task's teacher to each training example ``sample_id``."""
        return read_table(self.directory.answers(task), ("sample_id", "answer"))

    def text(self, name: str) -> str:
        """Return the contents of a text file of the run, such as ``config.yaml``."""
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{path}: cannot be read ({error})") from error

    @cached_property
    def own_teachers(self) -> FinishedRun | None:
        """The run that trained the teachers within this one; None if there is no such run in the run directory."""
        path = self.directory.teachers()
        return FinishedRun.open(path) if (path / "summary.json").is_file() else None

    @cached_property
    def teachers(self) -> FinishedRun | None:
        """The run that trained the teachers: its own, or the one that ``teachers.run`` names; None without teachers.

        Raises RunDirectoryError if the run that ``teachers.run`` names is not there.
        """
        if self.own_teachers is not None:
            return self.own_teachers
        named = self.experiment.teachers.run
        return FinishedRun.open(named) if named and get_method(self.method).has_task_teachers else None


def labels(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a name for each run: variant and seed, and the folder where several runs have both in common."""
    times = Counter(run.label for run in runs)
    return [f"{run.label} ({run.path.resolve().name})" if times[run.label] > 1 else run.label for run in runs]
