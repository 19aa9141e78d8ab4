"""The papers' tables as data: one file each in ``published/``, validated and indexed by block, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import model_validator

from ray_l4.config.fields import Strict
from ray_l4.errors import ConfigError, nearest
from ray_l4.report.aggregate import AVERAGE, Statistic, row_label
from ray_l4.report.run_result import NO_ORDER, order_title

FOLDER = Path(__file__).parent / "published"


class PublishedRow(Strict):
    """A row of a printed table."""

    variant: str
    """Our name of the method or variant."""
    student: int = 0
    """Number of the student, counted from 0."""
    values: list[float]
    """One for each column, as printed."""
    sd: list[float] | None = None
    """Standard deviations, if they are printed."""
    belongs_to: list[str] | None = None
    """The order that the values really belong to, if the paper prints them under another one."""


class PublishedBlock(Strict):
    """Rows of one order of the tasks, of none, or under a title of their own."""

    order: list[str] | None = None
    """The tasks in the order of learning; None for methods without an order."""
    title: str | None = None
    """A title in place of an order."""
    task: str | None = None
    """The task, in tables that have a block for each task."""
    rows: list[PublishedRow]

    def title_for(self, order: list[str] | None) -> str:
        """Return the title of the block of our table that rows of this order are compared with."""
        title = self.title or (order_title(order) if order else NO_ORDER)
        return f"{title}: {self.task}" if self.task else title


class PublishedTable(Strict):
    """A table of a paper. Values are percentages unless the title says otherwise."""

    title: str
    """Subject of the table."""
    source: str
    """Paper and number of the table or figure."""
    measure: Literal["scores", "orders", "forgetting", "cost", "agreement", "agreement_by_task"] = "scores"
    """How its values are computed from runs: a key of ``report.measures.MEASURES``."""
    columns: list[str] | None = None
    """Names of the columns; if not given, the tasks of a block's order, and the average."""
    digits: int = 1
    """Digits after the decimal point in print."""
    blocks: list[PublishedBlock]
    """Empty for a figure whose values are not printed."""
    notes: list[str]
    """Caveats that a reader must know for a fair comparison."""

    @model_validator(mode="after")
    def _a_value_for_each_column(self) -> PublishedTable:
        for block in self.blocks:
            for row in block.rows:
                for values in (row.values, row.sd or row.values):
                    if len(values) != len(self.columns_of(block)):
                        raise ValueError(f"{row.variant}: {values} are not one for each of {self.columns_of(block)}")
        return self

    def columns_of(self, block: PublishedBlock) -> list[str]:
        """Return the names of the columns of a block."""
        return self.columns or [*(block.order or []), AVERAGE]

    def cells(self) -> dict[str, dict[str, dict[str, Statistic]]]:
        """Return block -> row -> column -> published value.

        Blocks and rows keep their order in print, even if a row belongs to another block.
        """
        found: dict[str, dict[str, dict[str, Statistic]]] = {block.title_for(block.order): {} for block in self.blocks}
        rows = [(index, block, row) for block in self.blocks for index, row in enumerate(block.rows)]
        for _, block, row in sorted(rows, key=lambda entry: entry[0]):
            sds: Sequence[float | None] = row.sd or [None] * len(row.values)
            values = zip(self.columns_of(block), row.values, sds, strict=True)
            cells = {column: Statistic(mean, sd) for column, mean, sd in values}
            found[block.title_for(row.belongs_to or block.order)][row_label(row.variant, row.student)] = cells
        return found

    def students(self) -> tuple[int, ...]:
        """Return the numbers of the students that have a row."""
        return tuple(sorted({row.student for block in self.blocks for row in block.rows})) or (0,)


def keys() -> list[str]:
    """Return the names of all published tables."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def published_table(key: str) -> PublishedTable:
    """Return the table called ``key``, such as ``l4-table2``. Raises ConfigError if there is none of that name."""
    if key not in keys():
        raise ConfigError(f"--table {key}: no such published table. {nearest(key, keys())}")
    return PublishedTable.model_validate(yaml.safe_load((FOLDER / f"{key}.yaml").read_text(encoding="utf-8")))
