"""Sections about more than one run: a comparison of several runs, and the teachers of a run."""

from __future__ import annotations

from collections.abc import Sequence

from ray_l4.report import paired_text
from ray_l4.report.aggregate import AVERAGE, FORGETTING
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.groups import STUDENT, GroupBlock, group_rows, grouped
from ray_l4.report.html.blocks import Block, Chart, Fold, Note, Section, Table
from ray_l4.report.html.charts_scores import grouped_bars
from ray_l4.report.markdown import number
from ray_l4.report.paired import PairedTable, compare


def comparison(runs: Sequence[FinishedRun], against: str | None = None) -> Section:
    """Return a comparison of runs that learned the same tasks: for each order of them, a table and bars.

    With ``against``, it ends with the paired differences of all variants to this one.

    Raises ConfigError if the runs learned different tasks.
    """
    found = grouped(runs)
    note = f"Final scores of student {STUDENT} of each run, in percent."
    if any(block.has_several_seeds for block in found):
        note += " Runs that differ only in their seed are one row: mean ± sample standard deviation over the seeds."
    blocks: list[Block] = [Note(note)]
    for index, block in enumerate(found):
        blocks += _block(block, f"-{index}" if index else "", block.title if len(found) > 1 else "")
    blocks += [] if against is None else _paired(compare(runs, against, STUDENT))
    return Section("comparison", "Runs compared", blocks)


def _paired(paired: PairedTable) -> list[Block]:
    tables = [Table(*paired_text.header_and_rows(paired), paired_text.title(paired))] if paired.rows else []
    return [*tables, *map(Note, paired_text.notes(paired))]


def _block(block: GroupBlock, suffix: str, title: str) -> list[Block]:
    """Return the tables and bars of runs on one order. ``title`` names it if there are several."""
    blocks: list[Block] = [Table(*group_rows(block.groups), title)]
    if block.has_several_seeds:
        blocks.append(Fold(f"Each of the {len(block.runs)} runs", [Table(*group_rows(block.each()))]))
    cells = [group.cells() for group in block.groups]

    def bars(id: str, subject: str, columns: Sequence[str]) -> Chart:
        means = {name: [cell.mean if (cell := one[name]) else None for one in cells] for name in columns}
        spread = {name: [cell.sd if (cell := one[name]) else None for one in cells] for name in columns}
        caption = "Thin lines: one standard deviation to both sides." if block.has_several_seeds else ""
        names, subject = [group.name for group in block.groups], f"{subject}: {title}" if title else subject
        return grouped_bars(f"{id}{suffix}", subject, names, means, caption=caption, spread=spread)

    return [
        *blocks,
        bars("comparison-bars", "Average score and forgetting", (AVERAGE, FORGETTING)),
        bars("comparison-tasks", "Final score of every task", block.runs[0].tasks),
    ]


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
