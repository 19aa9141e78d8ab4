"""What a table shows: from runs to a table of statistics, one function for each kind of table in the papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from analysis.agreement import agreement, agreement_by_task
from analysis.results import Results, Run, teachers_of
from ray_l4.report.aggregate import AVERAGE, NO_ORDER, Measurement, Table, aggregate, group, row_of

Measure = Callable[[Results, Sequence[int]], Table]
"""From runs and the students that are asked for to a table."""

ALL_RUNS = "all runs"
OVER_ORDERS = "mean over orders"
MEMORY, HOURS = "memory GB", "hours"


def scores(results: Results, students: Sequence[int]) -> Table:
    """Final scores, their average and forgetting. Raises ConfigError if no run has one of ``students``."""
    return aggregate([run.summary for run in results.runs], students)


def over_orders(results: Results, students: Sequence[int]) -> Table:
    """Scores averaged over orders: each order counts once, with its mean over seeds (L2KD, Table 3).

    Mean and standard deviation of the block ``OVER_ORDERS`` are over orders; methods without an order stay as they are.
    """
    table = scores(results, students)
    means = [
        Measurement(OVER_ORDERS, row.label, {name: cell.mean for name, cell in row.cells.items() if cell})
        for block in table.blocks
        if block.title != NO_ORDER
        for row in block.rows
    ]
    unordered = tuple(block for block in table.blocks if block.title == NO_ORDER)
    averaged = group(means, table.columns, table.lower_is_better)
    return Table(table.columns, (*unordered, *averaged.blocks), table.lower_is_better)


def forgetting(results: Results, students: Sequence[int]) -> Table:
    """Forgetting of every task but the last, and its average (L4, Table 3)."""
    measured = [
        Measurement(run.block, row_of(run.variant, student), forgetting_of(run, student))
        for run in results.runs
        for student in students
        if student in run.students()
    ]
    columns = (*results.tasks, AVERAGE)
    return group([one for one in measured if one.values], columns, frozenset(columns))


def forgetting_of(run: Run, student: int) -> dict[str, float | None]:
    """Highest minus final score of every task but the last, and ``AVERAGE``; empty for a method without an order.

    The highest score is that of any checkpoint which was scored: of every epoch, or the last of every task (REFERENCE.md#continual-metrics).
    """
    if run.block == NO_ORDER or len(run.tasks) < 2:
        return {}
    final = run.summary["final"][str(student)]
    checkpoints = run.trajectory(student).values()
    drops: dict[str, float | None] = {}
    for task in run.tasks[:-1]:
        known = [scores[task] for scores in checkpoints if task in scores]
        drops[task] = max(known) - final[task] if known and final[task] is not None else None
    defined = [drop for drop in drops.values() if drop is not None]
    complete = len(defined) == len(drops)
    return {**drops, AVERAGE: sum(defined) / len(defined) if complete else None}


def cost(results: Results, students: Sequence[int]) -> Table:
    """Peak memory and time (L4, Table 8). ``students`` do not matter: a run's cost is that of all of them."""
    measured = [Measurement(ALL_RUNS, run.variant, cost_of(run)) for run in results.runs]
    return group(measured, (MEMORY, HOURS), frozenset({MEMORY, HOURS}), digits=3)


def cost_of(run: Run) -> dict[str, float | None]:
    """Memory in 10^9 bytes of all processes but the evaluators, and hours with those of the teachers.

    A run's own time includes that of teachers trained within it; that of teachers from another run is added.
    """
    peaks: Mapping[str, int] = run.summary["peak_memory_bytes"]
    teachers = teachers_of(run)
    elsewhere = teachers is not None and run.path.resolve() not in teachers.path.resolve().parents
    seconds = run.summary["wall_seconds"] + (teachers.summary["wall_seconds"] if teachers and elsewhere else 0.0)
    return {
        MEMORY: sum(peak for name, peak in peaks.items() if not name.startswith("evaluator-")) / 1e9 or None,
        HOURS: seconds / 3600,
    }


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "scores": scores,
        "orders": over_orders,
        "forgetting": forgetting,
        "cost": cost,
        "agreement": agreement,
        "agreement_by_task": agreement_by_task,
    }
)
"""Kind of table, as the files in ``published/`` name it."""
