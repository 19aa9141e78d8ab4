"""Many runs as one table: a block for each order of the tasks, a row for each variant, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from types import MappingProxyType

from ray_l4.errors import ConfigError
from ray_l4.report.markdown import number, table
from ray_l4.report.run_result import RunResult, order_title
from ray_l4.store.run_directory import TOGETHER, row_title

AVERAGE, FORGETTING, OVER_EPOCHS = "average", "forgetting", "forgetting over epochs"
"""Columns beside those of the tasks. ``OVER_EPOCHS`` takes the highest score of any epoch (L4, Table 3)."""
GENERAL_TEXT = "general ppl"
"""Column of the final perplexity on the general text."""
FIGURES: Mapping[str, str] = MappingProxyType(
    {AVERAGE: "average_accuracy", FORGETTING: "forgetting", OVER_EPOCHS: "forgetting_over_epochs"}
    | {GENERAL_TEXT: "general_perplexity"}
)
"""Column -> key of a summary."""


@dataclass(frozen=True)
class Statistic:
    """Mean and spread of a value over several runs."""

    mean: float
    sd: float | None = None
    """Sample standard deviation (divisor n - 1); None for a single run."""
    count: int = 1
    """Number of runs."""

    def text(self, digits: int = 1) -> str:
        """Return ``mean ± sd``, or the single value."""
        return number(self.mean, digits) + ("" if self.sd is None else f" ± {number(self.sd, digits)}")


def statistic(values: Iterable[float | None]) -> Statistic | None:
    """Return mean and sample standard deviation of the values that are defined; None if none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Statistic(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Measurement:
    """The contribution of one student of one run to a table."""

    block: str
    row: str
    values: Mapping[str, float | None]
    """Column -> value; None, or no entry, where it is undefined."""


@dataclass(frozen=True)
class ResultRow:
    """All runs of a variant over one order of the tasks."""

    label: str
    runs: int
    """Number of runs."""
    cells: Mapping[str, Statistic | None]


@dataclass(frozen=True)
class ResultBlock:
    """Rows that can be compared with each other."""

    title: str
    rows: tuple[ResultRow, ...]


@dataclass(frozen=True)
class ResultTable:
    """Statistics of runs that learned the same set of tasks."""

    columns: tuple[str, ...]
    blocks: tuple[ResultBlock, ...]
    lower_is_better: frozenset[str] = frozenset()
    """Columns in which the smallest value is the best."""
    digits: int = 1
    """Digits after the decimal point."""

    def best(self, block: ResultBlock, column: str) -> frozenset[str]:
        """Return labels of the rows whose printed mean is the best of a column; none if all are equal."""
        means = {row.label: round(cell.mean, self.digits) for row in block.rows if (cell := row.cells.get(column))}
        if len(set(means.values())) < 2:
            return frozenset()
        best = (min if column in self.lower_is_better else max)(means.values())
        return frozenset(label for label, mean in means.items() if mean == best)


def row_label(variant: str, student: int) -> str:
    """Return the label of a row. Student 0 stands for its run, as in the papers, and is not named."""
    return variant if student == 0 else f"{variant}, {row_title(student)}"


def aggregate(runs: Sequence[RunResult], students: Sequence[int] = (0,), forgetting: str = FORGETTING) -> ResultTable:
    """Return final scores, average and forgetting: mean and deviation over the seeds of every variant and order.

    A variant has a row for each of ``students`` that its runs have, and below them one for all its students together,
    if they were scored so. Blocks and rows come in the order in which they appear; the columns are the tasks in the
    order of the first run, ``AVERAGE`` and ``forgetting``, which is ``FORGETTING`` or ``OVER_EPOCHS``.

    Raises ConfigError as ``comparable_tasks`` does, or if no run has one of ``students``.
    """
    tasks = comparable_tasks(runs)
    for student in students:
        if not any(student in run.students for run in runs):
            raise ConfigError(f"no run has a student {student}. Students are counted from 0.")
    measured = [
        Measurement(run.order, row_label(run.variant, student), scores_of(run, student, forgetting))
        for run in runs
        for student in (*students, TOGETHER)
        if student in run.rows
    ]
    columns = (*tasks, AVERAGE, forgetting, *general_columns(runs))
    return group(measured, columns, frozenset({forgetting, GENERAL_TEXT}))


def general_columns(runs: Iterable[RunResult]) -> tuple[str, ...]:
    """Return the column of perplexities if runs have any, and all of them on the same text: others do not compare."""
    texts = {run.general["digest"] for run in runs if run.general}
    return (GENERAL_TEXT,) if len(texts) == 1 else ()


def comparable_tasks(runs: Sequence[RunResult], names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the tasks that all runs learned, in the order of the first run. Messages call the runs by ``names``.

    Raises ConfigError if there is no run, if the runs learned different sets of tasks, or if one variant has the same
    seed twice on one stream: a mean would count one run twice, or mix settings.
    """
    if not runs:
        raise ConfigError("there is no finished run to make a table of")
    names = names or [run.label for run in runs]
    task_sets = {", ".join(sorted(run.tasks)): name for run, name in zip(runs, names, strict=True)}
    if len(task_sets) > 1:
        listed = "; ".join(f"{tasks} (such as {name})" for tasks, name in sorted(task_sets.items()))
        raise ConfigError(
            f"the runs learned different tasks and cannot share a table: {listed}. "
            "Make a table for each set of tasks; different orders of the same tasks may share one."
        )
    first: dict[tuple[str, str, int], str] = {}
    for run, name in zip(runs, names, strict=True):
        key = (run.variant, order_title(run.stream), run.seed)
        if key in first:
            raise ConfigError(
                f"two runs of {key[0]} on {key[1]} have seed {key[2]}: {first[key]}; {name}. Leave one of them out or, "
                "if their settings differ, give them different names with 'variant' in their experiment files."
            )
        first[key] = name
    return runs[0].tasks


def scores_of(run: RunResult, student: int, forgetting: str = FORGETTING) -> dict[str, float | None]:
    """Return a student's final score of every task, ``AVERAGE`` and ``forgetting``, in percent, and its perplexity."""
    figures = (AVERAGE, forgetting, GENERAL_TEXT)
    return {**run.final(student), **{name: run.figure(FIGURES[name], student) for name in figures}}


def group(
    measured: Iterable[Measurement],
    columns: Sequence[str],
    lower_is_better: frozenset[str] = frozenset(),
    digits: int = 1,
) -> ResultTable:
    """Return a table in which measurements of the same block and row are one row of statistics."""
    blocks: dict[str, dict[str, list[Mapping[str, float | None]]]] = {}
    for one in measured:
        blocks.setdefault(one.block, {}).setdefault(one.row, []).append(one.values)
    return ResultTable(
        tuple(columns),
        tuple(
            ResultBlock(title, tuple(_row(label, values, columns) for label, values in rows.items()))
            for title, rows in blocks.items()
        ),
        lower_is_better,
        digits,
    )


def _row(label: str, values: Sequence[Mapping[str, float | None]], columns: Iterable[str]) -> ResultRow:
    return ResultRow(label, len(values), {name: statistic(one.get(name) for one in values) for name in columns})


def to_markdown(result: ResultTable) -> str:
    """Format a table as Markdown: a part for each block, the best mean of a column in bold if there are several rows.

    A cell is mean ± standard deviation; ``runs`` is the number of runs behind a row.
    """
    return "\n\n".join(f"{block.title}:\n\n{_markdown(result, block)}" for block in result.blocks)


def _markdown(result: ResultTable, block: ResultBlock) -> str:
    columns = [column for column in result.columns if any(row.cells[column] for row in block.rows)]
    best = {column: result.best(block, column) for column in columns}
    rows = []
    for row in block.rows:
        texts = {column: cell.text(result.digits) if (cell := row.cells[column]) else "–" for column in columns}
        marked = [f"**{text}**" if row.label in best[column] else text for column, text in texts.items()]
        rows.append([row.label, str(row.runs), *marked])
    return table(["variant", "runs", *columns], rows)
