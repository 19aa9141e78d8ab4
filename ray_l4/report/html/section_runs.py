"""Sections about more than one run: a comparison of several runs, and the teachers of a run."""

from __future__ import annotations

from collections.abc import Sequence

from ray_l4.report.finished_run import FinishedRun, labels
from ray_l4.report.html.blocks import Note, Section, Table
from ray_l4.report.html.charts_scores import grouped_bars
from ray_l4.report.markdown import number
from ray_l4.report.run_result import RunResult

STUDENT = 0
"""The student that stands for its run, as in the papers."""


def comparison(runs: Sequence[FinishedRun]) -> Section:
    """Return a comparison of runs on one stream, as a table and as bars."""
    names, tasks = labels(runs), runs[0].tasks
    header = ["run", *tasks, "average", "forgetting", "backward transfer", "wall s"]
    rows = [
        [name, *map(number, _figures(run)), f"{run.wall_seconds:.0f}"] for name, run in zip(names, runs, strict=True)
    ]
    columns = list(zip(*map(_figures, runs), strict=True))
    bars = {"average": columns[len(tasks)], "forgetting": columns[len(tasks) + 1]}
    return Section(
        "comparison",
        "Runs compared",
        [
            Note("Final scores of student 0 of each run, in percent."),
            Table(header, rows),
            grouped_bars("comparison-bars", "Average score and forgetting", names, bars),
            grouped_bars(
                "comparison-tasks", "Final score of every task", names, dict(zip(tasks, columns, strict=False))
            ),
        ],
    )


def teachers(run: FinishedRun, prefix: str) -> Section | None:
    """Return the final scores of the teachers that were trained within the run; None for a run without such."""
    if run.own_teachers is None:
        return None
    teacher = run.own_teachers.final(STUDENT)
    rows = [
        [task, number(teacher.get(task)), *(number(run.final(student)[task]) for student in run.students)]
        for task in run.tasks
    ]
    note = Note(
        f"Trained before the students, each on its task alone. Their own run directory is {run.path.name}/teachers."
    )
    header = ["final score", "teacher", *(f"student {student}" for student in run.students)]
    return Section(f"{prefix}-teachers", "Teachers", [note, Table(header, rows)])


def _figures(run: RunResult) -> list[float | None]:
    keys = ("average_accuracy", "forgetting", "backward_transfer")
    return [*(run.final(STUDENT)[task] for task in run.tasks), *(run.figure(key, STUDENT) for key in keys)]
