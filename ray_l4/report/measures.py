"""The kinds of tables in the papers: a function each, from runs to a table of statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from ray_l4.metrics.continual import forgetting as mean_forgetting
from ray_l4.metrics.continual import forgetting_by_task
from ray_l4.report.aggregate import AVERAGE, Measurement, ResultTable, aggregate, group, row_label
from ray_l4.report.agreement import agreement, agreement_by_task
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.results import Results
from ray_l4.report.run_result import NO_ORDER

Measure = Callable[[Results, Sequence[int]], ResultTable]
"""Takes runs and the numbers of the students to show."""

ALL_RUNS = "all runs"
OVER_ORDERS = "mean over orders"
MEMORY, HOURS = "memory GB", "hours"


def scores(results: Results, students: Sequence[int]) -> ResultTable:
    """Return final scores, their average and forgetting. Raises ConfigError if no run has one of ``students``."""
    return aggregate(results.runs, students, results.forgetting)


def over_orders(results: Results, students: Sequence[int]) -> ResultTable:
    """Return scores averaged over orders: each order counts once, with its mean over seeds (L2KD, Table 3).

    In the block ``OVER_ORDERS``, mean and standard deviation are over orders. Methods without an order stay as they
    are.
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
    return ResultTable(table.columns, (*unordered, *averaged.blocks), table.lower_is_better)


def forgetting(results: Results, students: Sequence[int]) -> ResultTable:
    """Return the forgetting of every task but the one learned last, and its average (L4, Table 3).

    Raises ConfigError if the scores of single epochs are wanted, and a run has none.
    """
    measured = [
        Measurement(run.order, row_label(run.variant, student), forgetting_of(run, student, results.over_epochs))
        for run in results.runs
        for student in students
        if student in run.students
    ]
    columns = (*results.tasks, AVERAGE)
    return group([one for one in measured if one.values], columns, frozenset(columns))


def forgetting_of(run: FinishedRun, student: int, over_epochs: bool = False) -> dict[str, float | None]:
    """Return the forgetting of every task but the one learned last, and ``AVERAGE``; empty for a method without order.

    The highest score is that after any task, or with ``over_epochs`` after any epoch (REFERENCE.md#continual-metrics).
    """
    if not run.learns_in_order or len(run.tasks) < 2:
        return {}
    matrix, epochs = run.matrix(student), run.scores_of_epochs(student) if over_epochs else ()
    drops = forgetting_by_task(matrix, epochs, run.learned_columns)
    average = mean_forgetting(matrix, epochs, run.learned_columns)
    return {**{run.tasks[column]: drop for column, drop in drops.items()}, AVERAGE: average}


def cost(results: Results, students: Sequence[int]) -> ResultTable:
    """Return peak memory and time (L4, Table 8). ``students`` is not used: the cost of a run is that of all of them."""
    measured = [Measurement(ALL_RUNS, run.variant, cost_of(run)) for run in results.runs]
    return group(measured, (MEMORY, HOURS), frozenset({MEMORY, HOURS}), digits=3)


def cost_of(run: FinishedRun) -> dict[str, float | None]:
    """Return the memory of all processes but the evaluators, in units of 10^9 bytes, and hours, teachers included.

    The time of a run includes that of teachers trained within it; that of teachers from another run is added.
    """
    teachers = run.teachers
    elsewhere = teachers is not None and run.path.resolve() not in teachers.path.resolve().parents
    seconds = run.wall_seconds + (teachers.wall_seconds if teachers and elsewhere else 0.0)
    peaks = run.peak_memory_bytes
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
"""Kind of table, as the files in ``published/`` name it -> its function."""
