"""Many runs as one table: a block for each order of the tasks, a row for each variant, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ray_l4.errors import ConfigError
from ray_l4.methods import get_method
from ray_l4.report.markdown import number, table, variant_of

Summary = Mapping[str, Any]
"""The contents of a run's ``summary.json``."""

AVERAGE, FORGETTING = "average", "forgetting"
NO_ORDER = "in no order"
"""Title of the block of methods that learn each task alone, or all at once."""


@dataclass(frozen=True)
class Statistic:
    """What several runs measured."""

    mean: float
    sd: float | None = None
    """Sample standard deviation (divisor n - 1); None for a single run."""
    count: int = 1

    def text(self, digits: int = 1) -> str:
        """``mean ± sd``, or the one value there is."""
        return number(self.mean, digits) + ("" if self.sd is None else f" ± {number(self.sd, digits)}")


def statistic(values: Iterable[float | None]) -> Statistic | None:
    """Mean and sample standard deviation of the values that are defined; None if there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Statistic(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Measurement:
    """What one student of one run contributes to a table."""

    block: str
    row: str
    values: Mapping[str, float | None]
    """Column -> value; None, or no entry, where it is not defined."""


@dataclass(frozen=True)
class Row:
    """All runs of a variant over one order of the tasks."""

    label: str
    runs: int
    cells: Mapping[str, Statistic | None]


@dataclass(frozen=True)
class Block:
    """Rows that can be compared with each other."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """Runs over one set of tasks."""

    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    lower_is_better: frozenset[str] = frozenset()
    """Columns in which the smallest value is the best."""
    digits: int = 1
    """Digits after the decimal point."""

    def best(self, block: Block, column: str) -> frozenset[str]:
        """Labels of the rows whose printed mean is the best of a column; none where all are equal."""
        means = {row.label: round(cell.mean, self.digits) for row in block.rows if (cell := row.cells.get(column))}
        if len(set(means.values())) < 2:
            return frozenset()
        best = (min if column in self.lower_is_better else max)(means.values())
        return frozenset(label for label, mean in means.items() if mean == best)


def order_title(stream: Iterable[str]) -> str:
    """An order of the tasks as people read it."""
    return " -> ".join(stream)


def block_of(summary: Summary) -> str:
    """Title of the block that a run belongs to: its order, or ``NO_ORDER`` if its method has none."""
    return order_title(summary["stream"]) if get_method(summary["method"]).stages == "stream" else NO_ORDER


def row_of(variant: str, student: int) -> str:
    """Label of a row. Student 0 stands for its run, as in the papers, and is not named."""
    return variant if student == 0 else f"{variant}, student {student}"


def aggregate(summaries: Sequence[Summary], students: Sequence[int] = (0,)) -> Table:
    """Final scores, average and forgetting: mean and standard deviation over the seeds of every variant and order.

    A variant has a row for each of ``students`` that its runs have. Blocks and rows come in the order in which they
    appear; the columns are the tasks in the order of the first run, ``AVERAGE`` and ``FORGETTING``.

    Raises ConfigError as ``comparable`` does, or if no run has one of ``students``.
    """
    tasks = comparable(summaries)
    for student in students:
        if not any(student < run["peers"] for run in summaries):
            raise ConfigError(f"no run has a student {student}. Students are counted from 0")
    measured = [
        Measurement(block_of(run), row_of(variant_of(run), student), scores_of(run, student))
        for run in summaries
        for student in students
        if student < run["peers"]
    ]
    return group(measured, (*tasks, AVERAGE, FORGETTING), frozenset({FORGETTING}))


def comparable(summaries: Sequence[Summary], names: Sequence[str] = ()) -> tuple[str, ...]:
    """The tasks that all runs learned, in the order of the first one. ``names`` of the runs make messages clearer.

    Raises ConfigError if there is no run, if they learned different sets of tasks, or if one variant has the same seed
    twice on one stream: then a mean would count one run twice, or mix settings.
    """
    if not summaries:
        raise ConfigError("there is no finished run to make a table of")
    names = names or [f"{variant_of(run)}, seed {run['seed']}" for run in summaries]
    sets = {", ".join(sorted(run["stream"])): name for run, name in zip(summaries, names, strict=True)}
    if len(sets) > 1:
        listed = "; ".join(f"{tasks} (such as {name})" for tasks, name in sorted(sets.items()))
        raise ConfigError(
            f"the runs learned different tasks, which cannot stand in one table: {listed}. "
            "Make a table of each; different orders of the same tasks may stand together."
        )
    first: dict[tuple[str, str, int], str] = {}
    for run, name in zip(summaries, names, strict=True):
        key = (variant_of(run), order_title(run["stream"]), run["seed"])
        if key in first:
            raise ConfigError(
                f"two runs of {key[0]} on {key[1]} have seed {key[2]}: {first[key]}; {name}. Leave one of them out or, "
                "if their settings differ, call them differently by 'variant' in their experiment files."
            )
        first[key] = name
    return tuple(summaries[0]["stream"])


def scores_of(summary: Summary, student: int) -> dict[str, float | None]:
    """Final score of every task, ``AVERAGE`` and ``FORGETTING`` of one student, in percent."""
    key = str(student)
    ends = {AVERAGE: summary["average_accuracy"][key], FORGETTING: summary["forgetting"][key]}
    return {**summary["final"][key], **ends}


def group(
    measured: Iterable[Measurement],
    columns: Sequence[str],
    lower_is_better: frozenset[str] = frozenset(),
    digits: int = 1,
) -> Table:
    """Measurements of the same block and row become one row of statistics."""
    blocks: dict[str, dict[str, list[Mapping[str, float | None]]]] = {}
    for one in measured:
        blocks.setdefault(one.block, {}).setdefault(one.row, []).append(one.values)
    return Table(
        tuple(columns),
        tuple(
            Block(title, tuple(_row(label, values, columns) for label, values in rows.items()))
            for title, rows in blocks.items()
        ),
        lower_is_better,
        digits,
    )


def _row(label: str, values: Sequence[Mapping[str, float | None]], columns: Iterable[str]) -> Row:
    return Row(label, len(values), {name: statistic(one.get(name) for one in values) for name in columns})


def to_markdown(result: Table) -> str:
    """The table as Markdown: a part for each block, the best mean of a column in bold where there are several rows.

    A cell is mean ± standard deviation; ``runs`` is how many runs stand behind a row.
    """
    return "\n\n".join(f"{block.title}:\n\n{_markdown(result, block)}" for block in result.blocks)


def _markdown(result: Table, block: Block) -> str:
    columns = [column for column in result.columns if any(row.cells[column] for row in block.rows)]
    best = {column: result.best(block, column) for column in columns}
    rows = []
    for row in block.rows:
        texts = {column: cell.text(result.digits) if (cell := row.cells[column]) else "–" for column in columns}
        marked = [f"**{text}**" if row.label in best[column] else text for column, text in texts.items()]
        rows.append([row.label, str(row.runs), *marked])
    return table(["variant", "runs", *columns], rows)
