"""Sections about more than one run: several runs beside each other, and the teachers of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ray_l4.report.html.blocks import Note, Section, Table
from ray_l4.report.html.charts_scores import grouped_bars
from ray_l4.report.html.record import Record
from ray_l4.report.markdown import number

STUDENT = "0"
"""A run is represented by this student, as in the papers."""


def labels(records: Sequence[Record]) -> list[str]:
    """A name for each run; those of the same variant and seed are told apart by their folders."""
    plain = [f"{record.variant}, seed {record.summary['seed']}" for record in records]
    times = Counter(plain)
    return [
        f"{label} ({record.path.resolve().name})" if times[label] > 1 else label
        for label, record in zip(plain, records, strict=True)
    ]


def comparison(records: Sequence[Record]) -> Section:
    """Runs on one stream as a table and as bars."""
    names, tasks = labels(records), records[0].tasks
    header = ["run", *tasks, "average", "forgetting", "backward transfer", "wall s"]
    rows = [
        [name, *map(number, _figures(record)), f"{record.summary['wall_seconds']:.0f}"]
        for name, record in zip(names, records, strict=True)
    ]
    columns = list(zip(*map(_figures, records), strict=True))
    bars = {"average": columns[len(tasks)], "forgetting": columns[len(tasks) + 1]}
    return Section(
        "comparison",
        "Runs beside each other",
        [
            Note("Final scores in percent, of student 0 of each run."),
            Table(header, rows),
            grouped_bars("comparison-bars", "Average score and forgetting", names, bars),
            grouped_bars(
                "comparison-tasks", "Final score of every task", names, dict(zip(tasks, columns, strict=False))
            ),
        ],
    )


def teachers(record: Record, prefix: str) -> Section | None:
    """How good the teachers were, for a run that has teachers of its own."""
    if record.teachers is None:
        return None
    final = record.teachers.summary()["final"][STUDENT]
    own = record.summary["final"]
    rows = [
        [task, number(final.get(task)), *(number(own[student][task]) for student in record.students)]
        for task in record.tasks
    ]
    note = Note(
        f"Trained before the students, each on its task alone; their own run directory is {record.path.name}/teachers."
    )
    header = ["at the end", "teacher", *(f"student {student}" for student in record.students)]
    return Section(f"{prefix}-teachers", "Teachers", [note, Table(header, rows)])


def _figures(record: Record) -> list[float | None]:
    final = record.summary["final"][STUDENT]
    keys = ("average_accuracy", "forgetting", "backward_transfer")
    return [*(final[task] for task in record.tasks), *(record.summary[key][STUDENT] for key in keys)]
