"""A run at one moment, from its directory alone: what was learned when, what is served, what waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import Stage, num_students, stages_of
from ray_l4.metrics.continual import ScoreMatrix
from ray_l4.report.run_files import Headline
from ray_l4.report.summary import score_matrix
from ray_l4.serve.choice import learned_tasks
from ray_l4.serve.overview_types import Learning, Overview, Served, StageOverview, TaskOverview
from ray_l4.store.inbox.assignments import waiting
from ray_l4.store.inbox.example import now
from ray_l4.store.promotion import Decision, decisions, served_stage
from ray_l4.store.run_directory import Cell, RunDirectory, RunState
from ray_l4.tasks.inbox_tasks import InboxTasks, inbox_tasks
from ray_l4.tasks.registry import TASKS

ReadScore = Callable[[RunDirectory, Cell], Headline | None]


def overview(run: RunDirectory, problems: Sequence[str] = (), read_score: ReadScore | None = None) -> Overview:
    """Return a run at this moment.

    ``problems``: what is wrong with files of its inbox. ``read_score``: reads a score, if it is not to be read anew.
    Raises RunDirectoryError if a record is damaged.
    """
    return _Reading(run, read_score or read_headline).overview(problems)


def read_headline(run: RunDirectory, cell: Cell) -> Headline | None:
    """Return the score that stands for a cell; None if it was not scored. Raises RunDirectoryError if damaged."""
    record = run.score(cell)
    if not record:
        return None
    return Headline(str(record["headline"]), float(record["values"][record["headline"]]))


@dataclass(frozen=True)
class _Reading:
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
        means = {student: _mean(self._scores(student, stage)[task] for task in learned) for student in self.matrices}
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

    def overview(self, problems: Sequence[str]) -> Overview:
        found = inbox_tasks(self.run, self.experiment)
        tasks = self._tasks(found)
        by_name = {task.name: task for task in tasks}
        learned = () if self.served is None else self.learned(self.served)
        last = () if self.served is None else self.stages[self.served].tasks
        return Overview(
            name=self.experiment.name,
            method=self.experiment.method,
            students=num_students(self.experiment),
            served=self._served(),
            tasks=tasks,
            stages=self._stages(),
            learning=self._learning(),
            average=_mean(by_name[task].score for task in learned),
            forgetting=_mean(by_name[task].forgetting for task in learned if task not in last),
            problems=list(dict.fromkeys([*found.problems, *problems])),
            when=now(),
        )

    def _served(self) -> Served | None:
        if self.served is None:
            return None
        return Served(stage=self.served, name=self.stages[self.served].name, student=self.best[self.served])

    def _tasks(self, found: InboxTasks) -> list[TaskOverview]:
        learned = () if self.served is None else self.learned(self.served)
        rows = [] if self.served is None else self.rows[: self.served + 1]
        tasks = []
        for name, task in found.tasks.items():
            scores = [row.get(name) for row in rows]
            known = [score for score in scores if score is not None]
            score = scores[-1] if scores else None
            best = max(known, default=None)
            forgotten = best - score if best is not None and score is not None and name in learned else None
            tasks.append(
                TaskOverview(
                    name=name,
                    metric=task.config.metric or (TASKS[name].metric if name in TASKS else ""),
                    question=task.config.question,
                    stages=[stage for stage in range(self.done) if name in self.stages[stage].tasks],
                    score=score,
                    best=best,
                    forgetting=forgotten,
                    waiting=waiting(self.run.path, name).examples,
                    is_new=task.is_new,
                )
            )
        return tasks

    def _stages(self) -> list[StageOverview]:
        last: Mapping[int, Decision] = {decision.stage: decision for decision in decisions(self.run)}
        found = []
        for number, stage in enumerate(self.stages):
            decision, finished = last.get(number), number < self.done
            found.append(
                StageOverview(
                    stage=number,
                    name=stage.name,
                    tasks=list(stage.tasks),
                    state="finished" if finished else "under way" if number == self.done else "to come",
                    served=number == self.served,
                    promoted=None if decision is None else decision.promoted,
                    why=None if decision is None else decision.why,
                    when=None if decision is None else decision.when,
                    finished=self._finished(number) if finished else None,
                    student=self.best[number] if finished else None,
                    scores=self.rows[number] if finished else {},
                )
            )
        return found

    def _finished(self, stage: int) -> str | None:
        """Return when the figures of a stage's last steps were written; None if they are not kept."""
        paths = [self.run.steps(stage, epoch) for epoch in range(self.experiment.epochs_of(stage), 0, -1)]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return None
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(sep=" ", timespec="seconds")

    def _learning(self) -> Learning | None:
        if self.done == len(self.stages):
            return None
        epochs = self.experiment.epochs_of(self.done)
        return Learning(
            stage=self.done,
            name=self.stages[self.done].name,
            tasks=list(self.stages[self.done].tasks),
            running=self.run.is_being_written(),
            epochs_done=sum(self.run.steps(self.done, epoch).is_file() for epoch in range(1, epochs + 1)),
            epochs=epochs,
        )


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean; None if a value is missing, or there are none."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None
