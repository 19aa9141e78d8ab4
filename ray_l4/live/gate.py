"""The gate: whether a finished stage is served, by what it did to the tasks that were learned before it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import Stage, num_students, stages_of
from ray_l4.serve.choice import learned_tasks
from ray_l4.store.promotion import Decision, decide, decisions, num_decided, served_stage
from ray_l4.store.run_directory import Cell, RunDirectory

_HIGHEST = 100.0
Row = Mapping[str, float | None]
"""Task -> the score of a model in percent; None if it was not scored."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a stage."""

    promoted: bool
    why: str


def judge(before: Row, after: Row, stage: Stage, earlier: Collection[str], most: float) -> Verdict:
    """Judge a stage by the scores of the model that is served, ``before`` it, and of its own best one, ``after`` it.

    An earlier task, one that the served model has learned and the stage has not, may fall by ``most`` percentage
    points. A task that the stage learned for the first time has to rise. One that came back must not fall: its
    corrections need not be among its tests. ``earlier``: the tasks that the served model has learned.
    """
    falls = {task: fall for task in earlier if (fall := _fall(before, after, task)) is not None}
    worst = max((task for task in falls if task not in stage.tasks), key=lambda task: falls[task], default=None)
    if worst is not None and falls[worst] > most:
        return Verdict(False, f"{worst} fell {_points(before, after, worst)}, more than {most:g} points")
    for task in stage.tasks:
        score, known = after.get(task), before.get(task) or 0.0
        if score is None:
            return Verdict(False, f"{task} has not been scored")
        if task in earlier and falls.get(task, 0.0) > 0:
            return Verdict(False, f"{task}, which it learned again, fell {_points(before, after, task)}")
        if task not in earlier and (score < known or score == known < _HIGHEST):
            return Verdict(False, f"{task}, which it learned, did not rise ({_points(before, after, task)})")
    rose = ", ".join(f"{task} {_points(before, after, task)}" for task in stage.tasks)
    kept = f"; the largest fall is that of {worst} ({_points(before, after, worst)})" if worst is not None else ""
    return Verdict(True, f"{rose}{kept}")


def judge_finished(run: RunDirectory, most: float) -> Iterator[Decision]:
    """Judge the finished stages that are still to be decided on, in order, as far as they are scored; yield decisions.

    What was learned before the first decision is promoted as it is. Raises RunDirectoryError if a file is damaged or
    cannot be written.
    """
    while (stage := _next_undecided(run)) is not None:
        verdict = _verdict(run, stage, most)
        if verdict is None:
            return
        decide(run, stage, promoted=verdict.promoted, by="gate", why=verdict.why)
        yield decisions(run)[-1]


def _next_undecided(run: RunDirectory) -> int | None:
    done = run.state().stages_done
    first = num_decided(run) if decisions(run) else done - 1
    return first if 0 <= first < done else None


def _verdict(run: RunDirectory, stage: int, most: float) -> Verdict | None:
    """Return the verdict on a stage; None as long as scores are missing."""
    served = served_stage(run)
    if served is None or not decisions(run):
        return Verdict(True, "it is the newest stage as the service begins")
    experiment = run.experiment()
    tasks = learned_tasks(experiment, stage)
    after, before = _best_row(run, experiment, stage, tasks), _best_row(run, experiment, served, tasks)
    if after is None or (before is None and not run.is_complete()):
        return None
    return judge(before or {}, after, stages_of(experiment)[stage], learned_tasks(experiment, served), most)


def _best_row(run: RunDirectory, experiment: ExperimentConfig, stage: int, tasks: Collection[str]) -> Row | None:
    """Return the scores of the student that is served after a stage; None as long as one of a student is missing."""
    epoch, lost = run.result_epoch(stage, experiment.epochs_of(stage)), run.state().lost_students
    present = [student for student in range(num_students(experiment)) if student not in lost]
    rows = {student: {task: _score(run, Cell(stage, epoch, student, task)) for task in tasks} for student in present}
    learned = learned_tasks(experiment, stage)
    if any(row[task] is None for row in rows.values() for task in tasks):
        return None
    return max(rows.values(), key=lambda row: sum(row[task] or 0.0 for task in learned))


def _score(run: RunDirectory, cell: Cell) -> float | None:
    record = run.score(cell)
    return float(record["values"][record["headline"]]) if record else None


def _fall(before: Row, after: Row, task: str) -> float | None:
    old, new = before.get(task), after.get(task)
    return None if old is None or new is None else old - new


def _points(before: Row, after: Row, task: str) -> str:
    old, new = ("–" if score is None else f"{score:.1f}" for score in (before.get(task), after.get(task)))
    return f"from {old} to {new}"
