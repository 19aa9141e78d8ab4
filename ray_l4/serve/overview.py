"""A run at one moment, from its directory alone: what was learned when, what is served, what waits."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime

from ray_l4.methods import num_students
from ray_l4.serve.overview_types import Learning, Overview, Served, StageOverview, TaskOverview
from ray_l4.serve.run_reading import ReadScore, RunReading, mean, read_headline
from ray_l4.store.inbox.assignments import left_aside, waiting
from ray_l4.store.inbox.example import now
from ray_l4.store.inbox.record import Assignment
from ray_l4.store.promotion import Decision, decisions
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.inbox_tasks import DEFAULT_METRIC, InboxTasks, inbox_tasks
from ray_l4.tasks.registry import TASKS


def overview(run: RunDirectory, problems: Sequence[str] = (), read_score: ReadScore | None = None) -> Overview:
    """Return a run at this moment.

    ``problems``: what is wrong with files of its inbox. ``read_score``: reads a score, if it is not to be read anew.
    Raises RunDirectoryError if a record is damaged.
    """
    return _Sections(run, read_score or read_headline).overview(problems)


def _set_aside_problems(run: RunDirectory, found: InboxTasks) -> list[str]:
    """Return a line for each assignment of the inbox that could not be learned: why, and what to do."""
    return [_set_aside_problem(run, assignment, found) for assignment in left_aside(run)]


def _set_aside_problem(run: RunDirectory, assignment: Assignment, found: InboxTasks) -> str:
    task, folder = found.tasks.get(assignment.task), assignment.folder(run.path)
    new = ["--metric", task.config.metric or DEFAULT_METRIC] if task is not None and task.is_new else []
    command = ["ray-l4", "extend", str(run.path), f"{assignment.task}={folder}", *new]
    return (
        f"assignment {assignment.number} of the inbox, of task {assignment.task!r}, was set aside, because it could "
        f"not be learned: {(assignment.failed or '').rstrip('. ')}. Correct {folder} and learn it by hand "
        f"({shlex.join(command)}), or remove that folder to do without its examples."
    )


class _Sections(RunReading):
    """The sections of an overview, from one reading."""

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
            average=mean(by_name[task].score for task in learned),
            forgetting=mean(by_name[task].forgetting for task in learned if task not in last),
            problems=list(dict.fromkeys([*found.problems, *_set_aside_problems(self.run, found), *problems])),
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
