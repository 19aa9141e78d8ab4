"""One reading of a run directory: which stage is served, which student is the best, and all scores that tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import Stage, num_students, stages_of
from ray_l4.metrics.continual import ScoreMatrix
from ray_l4.report.run_files import Headline
from ray_l4.report.summary import score_matrix
from ray_l4.serve.choice import learned_tasks
from ray_l4.store.promotion import served_stage
from ray_l4.store.run_directory import Cell, RunDirectory, RunState

ReadScore = Callable[[RunDirectory, Cell], Headline | None]


def read_headline(run: RunDirectory, cell: Cell) -> Headline | None:
    """Return the score that stands for a cell; None if it was not scored. Raises RunDirectoryError if damaged."""
    record = run.score(cell)
    if not record:
        return None
    return Headline(str(record["headline"]), float(record["values"][record["headline"]]))


@dataclass(frozen=True)
class RunReading:
    """One reading of a run directory."""

    run: RunDirectory
    read_score: ReadScore

    @cached_property
    def experiment(self) -> ExperimentConfig:
        return self.run.experiment()

    @cached_property
    def state(self) -> RunState:
        return self.run.state()

    @cached_property
    def stages(self) -> list[Stage]:
        return stages_of(self.experiment)

    @cached_property
    def epochs(self) -> list[int]:
        """The epoch that is the result of each finished stage."""
        return [self.run.result_epoch(stage, self.experiment.epochs_of(stage)) for stage in range(self.done)]

    @property
    def done(self) -> int:
        return min(self.state.stages_done, len(self.stages))

    @cached_property
    def served(self) -> int | None:
        stage = served_stage(self.run)
        return None if stage is None else min(stage, self.done - 1)

    @cached_property
    def matrices(self) -> dict[int, ScoreMatrix]:
        """Student -> a row for each finished stage, a column for each task. Lost students are left out."""
        everyone = range(num_students(self.experiment))
        present = [student for student in everyone if student not in self.state.lost_students] or list(everyone)
        cells = [
            Cell(stage, epoch, student, task)
            for student in present
            for stage, epoch in enumerate(self.epochs)
            for task in self.experiment.tasks
        ]
        found = {cell: score for cell in cells if (score := self.read_score(self.run, cell)) is not None}
        return {student: score_matrix(found, student, self.experiment.tasks, self.epochs) for student in present}

    @cached_property
    def best(self) -> list[int]:
        """The best student of each finished stage; the first one as long as a score is missing."""
        return [self._best(stage) for stage in range(self.done)]

    def _best(self, stage: int) -> int:
        learned = self.learned(stage)
        means = {student: mean(self._scores(student, stage)[task] for task in learned) for student in self.matrices}
        known = {student: mean for student, mean in means.items() if mean is not None}
        first = next(iter(self.matrices))
        return max(known, key=lambda student: known[student]) if len(known) == len(means) else first

    def learned(self, stage: int) -> tuple[str, ...]:
        """Return the tasks that the model of a stage has learned."""
        return learned_tasks(self.experiment, stage)

    def _scores(self, student: int, stage: int) -> dict[str, float | None]:
        return dict(zip(self.experiment.tasks, self.matrices[student][stage], strict=True))

    @cached_property
    def rows(self) -> list[dict[str, float | None]]:
        """The scores of each finished stage's best student."""
        return [self._scores(self.best[stage], stage) for stage in range(self.done)]


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean; None if a value is missing, or there are none."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None
