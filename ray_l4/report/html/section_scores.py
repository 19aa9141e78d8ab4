"""Sections about scores: the final ones, the matrices, the curves, and the students compared."""

from __future__ import annotations

from collections.abc import Sequence

from ray_l4.metrics.continual import forgetting_by_task
from ray_l4.report.facts import data_sizes, facts
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.blocks import Block, Chart, Listing, Note, Section, Table
from ray_l4.report.html.charts_scores import grouped_bars, heat_map, learning_curves
from ray_l4.report.markdown import number
from ray_l4.store.run_directory import row_title

FIGURES = {
    "average": "average_accuracy",
    "average over the stages": "average_incremental_accuracy",
    "forgetting": "forgetting",
    "backward transfer": "backward_transfer",
}
"""Name on the page -> key of a summary that holds one number for each student."""

MEAN = "mean of these"


def summary(run: FinishedRun, prefix: str) -> Section:
    """Return the main facts about the run, and the command that made it."""
    command = str(run.manifest.get("command", "The run directory does not say."))
    blocks: list[Block] = [
        Table(["", ""], facts(run), wraps=True),
        Table(*data_sizes(run)),
        Note("Made by this command:"),
        Listing(command),
    ]
    return Section(f"{prefix}-summary", "Summary", blocks)


def scores(run: FinishedRun, prefix: str) -> Section:
    """Return the score matrix of every student, and the forgetting of each task."""
    metrics = "; ".join(f"{task}: {run.metrics[task]}" for task in run.tasks if task in run.metrics)
    blocks: list[Block] = [
        Note(f"Each task's own metric, in percent ({metrics}). A dash stands for a score that is missing or undefined.")
    ]
    blocks += [
        heat_map(
            f"{prefix}-matrix-{student}",
            f"Score of every task after every stage, {row_title(student)}",
            run.stages,
            run.tasks,
            run.matrix(student),
        )
        for student in run.rows
    ]
    return Section(f"{prefix}-scores", "Scores", [*blocks, _forgetting(run, prefix)])


def curves(run: FinishedRun, prefix: str) -> Section:
    """Return the score of every task over the checkpoints."""
    charts = [_curves(run, prefix, student) for student in run.rows]
    drawn = [chart for chart in charts if chart is not None]
    return Section(f"{prefix}-curves", "Learning curves", drawn or [Note("No checkpoint of this run was scored.")])


def students(run: FinishedRun, prefix: str) -> Section:
    """Return final scores and figures of every student, and the largest differences between the students.

    Last comes what all of them score together, if they were scored so.
    """
    rows = [(task, [run.final(student)[task] for student in run.rows]) for task in run.tasks]
    rows += [(name, [run.figure(key, student) for student in run.rows]) for name, key in FIGURES.items()]
    header = ["final", *map(row_title, run.rows)]
    if len(run.students) == 1:
        table = Table(header, [[name, number(value)] for name, (value,) in rows])
        return Section(f"{prefix}-students", "Final scores", [table])
    count = len(run.students)
    header.insert(1 + count, "largest difference")
    table = Table(
        header,
        [
            [name, *map(number, values[:count]), number(_spread(values[:count])), *map(number, values[count:])]
            for name, values in rows
        ],
    )
    return Section(f"{prefix}-students", "Students compared", [table])


def _forgetting(run: FinishedRun, prefix: str) -> Chart | Note:
    found = {student: forgetting_by_task(run.matrix(student), learned=run.learned_columns) for student in run.rows}
    if not any(value is not None for drops in found.values() for value in drops.values()):
        return Note("Forgetting is undefined here: it needs tasks that are learned one after another.")
    title = "Forgetting: highest score of each task after any task, minus its final one"
    bars = {
        row_title(student): [*drops.values(), run.figure("forgetting", student)] for student, drops in found.items()
    }
    names = [run.tasks[column] for column in next(iter(found.values()))]
    return grouped_bars(f"{prefix}-forgetting", title, [*names, MEAN], bars, "percentage points")


def _curves(run: FinishedRun, prefix: str, student: int) -> Chart | None:
    own = sorted(cell for cell in run.scores if cell.student == student)
    if not own:
        return None
    lengths = [max((cell.epoch for cell in own if cell.stage == s), default=0) for s in range(len(run.stages))]
    begins = [sum(lengths[:stage]) for stage in range(len(lengths))]
    points: dict[str, list[tuple[float, float]]] = {}
    for task in run.tasks:
        of_task = [cell for cell in own if cell.task == task]
        if of_task:
            points[task] = [(begins[cell.stage] + cell.epoch, run.scores[cell]) for cell in of_task]
    spans = {
        name: (float(begin), float(begin + length))
        for name, begin, length in zip(run.stages, begins, lengths, strict=True)
        if length
    }
    return learning_curves(f"{prefix}-curves-{student}", f"Score over the epochs, {row_title(student)}", points, spans)


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) == len(values) else None
