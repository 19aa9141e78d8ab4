"""Sections about scores: what came out, the matrices, the curves, and the students beside each other."""

from __future__ import annotations

from ray_l4.methods import METHODS
from ray_l4.report.html.blocks import Block, Chart, Listing, Note, Section, Table
from ray_l4.report.html.charts_scores import grouped_bars, heat_map, learning_curves
from ray_l4.report.html.record import Matrix, Record
from ray_l4.report.markdown import graph, number

FIGURES = {
    "average": "average_accuracy",
    "average over the stages": "average_incremental_accuracy",
    "forgetting": "forgetting",
    "backward transfer": "backward_transfer",
}
"""What people call it -> its key in the summary, where it is a number for each student."""


def summary(record: Record, prefix: str) -> Section:
    """What was run, by which command, and the final scores."""
    facts = [
        ["method", record.summary["method"] + _described(record.summary["method"])],
        ["variant", record.variant],
        ["stream", " → ".join(record.tasks)],
        ["students", str(len(record.students))],
        ["who learns from whom", graph(record.summary)],
        ["seed", str(record.summary["seed"])],
        ["wall time", f"{record.summary['wall_seconds']:.0f} s"],
        ["run directory", record.path.resolve().name],
    ]
    command = str(record.manifest.get("command", "The run directory does not say."))
    blocks: list[Block] = [Table(["", ""], facts), Note("Made by this command:"), Listing(command)]
    return Section(f"{prefix}-summary", "Summary", blocks)


def scores(record: Record, prefix: str) -> Section:
    """The score matrix of every student, and what each task lost."""
    metrics = "; ".join(f"{task}: {record.metrics[task]}" for task in record.tasks if task in record.metrics)
    blocks: list[Block] = [Note(f"Percent of each task's own metric ({metrics}). A dash: not scored, or not defined.")]
    blocks += [
        heat_map(
            f"{prefix}-matrix-{student}",
            f"Score of every task after every stage, student {student}",
            record.stages,
            record.tasks,
            record.matrix(student),
        )
        for student in record.students
    ]
    return Section(f"{prefix}-scores", "Scores", [*blocks, _forgetting(record, prefix)])


def curves(record: Record, prefix: str) -> Section:
    """The score of every task over the checkpoints."""
    charts = [_curves(record, prefix, student) for student in record.students]
    drawn = [chart for chart in charts if chart is not None]
    return Section(f"{prefix}-curves", "Learning curves", drawn or [Note("No checkpoint of this run was scored.")])


def peers(record: Record, prefix: str) -> Section:
    """The students beside each other: final scores and figures, and how far they are apart."""
    students = record.students
    rows = [(task, [record.summary["final"][student][task] for student in students]) for task in record.tasks]
    rows += [(name, [record.summary[key][student] for student in students]) for name, key in FIGURES.items()]
    header = ["at the end", *(f"student {student}" for student in students)]
    if len(students) == 1:
        return Section(f"{prefix}-peers", "Final scores", [Table(header, [[name, number(v)] for name, (v,) in rows])])
    header.append("largest difference")
    table = Table(header, [[name, *map(number, values), number(_spread(values))] for name, values in rows])
    return Section(f"{prefix}-peers", "Students beside each other", [table])


def task_forgetting(matrix: Matrix) -> list[float | None]:
    """Of every task but the last, its highest score after any stage minus its final one (REFERENCE.md#continual-metrics): the terms of the
    mean that is called forgetting. None where a score is missing; nothing at all unless tasks were learned in turn."""
    if len(matrix) != len(matrix[0]):
        return []
    found: list[float | None] = []
    for task in range(len(matrix) - 1):
        learned = [row[task] for row in matrix[task:]]
        known = [score for row in matrix if (score := row[task]) is not None]
        found.append(None if None in learned else max(known) - known[-1])
    return found


def _forgetting(record: Record, prefix: str) -> Chart | Note:
    found = {f"student {student}": task_forgetting(record.matrix(student)) for student in record.students}
    if not any(value is not None for values in found.values() for value in values):
        return Note("Forgetting is not defined here: it needs tasks that are learned one after another.")
    title = "Forgetting: highest score of each task minus its final one"
    return grouped_bars(f"{prefix}-forgetting", title, record.tasks[:-1], found, "percentage points")


def _curves(record: Record, prefix: str, student: str) -> Chart | None:
    own = sorted(cell for cell in record.scores if cell.student == int(student))
    if not own:
        return None
    lengths = [max((cell.epoch for cell in own if cell.stage == s), default=0) for s in range(len(record.stages))]
    begins = [sum(lengths[:stage]) for stage in range(len(lengths))]
    points: dict[str, list[tuple[float, float]]] = {}
    for task in record.tasks:
        of_task = [cell for cell in own if cell.task == task]
        if of_task:
            points[task] = [(begins[cell.stage] + cell.epoch, record.scores[cell]) for cell in of_task]
    spans = {
        name: (float(begin), float(begin + length))
        for name, begin, length in zip(record.stages, begins, lengths, strict=True)
        if length
    }
    return learning_curves(f"{prefix}-curves-{student}", f"Score over the epochs, student {student}", points, spans)


def _spread(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) == len(values) else None


def _described(method: str) -> str:
    return f": {METHODS[method].summary}" if method in METHODS else ""
