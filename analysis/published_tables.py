"""The papers' tables as data: one file each in ``published/``, checked and found by block, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import model_validator

from ray_l4.config.fields import Strict
from ray_l4.errors import ConfigError, nearest
from ray_l4.report.aggregate import AVERAGE, NO_ORDER, Statistic, order_title, row_of

FOLDER = Path(__file__).parent / "published"


class PublishedRow(Strict):
    """One line of a printed table."""

    variant: str
    """Name of the method or variant here."""
    student: int = 0
    """Number of the student, counted from 0."""
    values: list[float]
    """As printed, one for each column."""
    sd: list[float] | None = None
    """Standard deviations, where they are printed."""
    belongs_to: list[str] | None = None
    """The order that the figures are of, where the paper prints them under another one."""


class PublishedBlock(Strict):
    """Lines that stand together: of one order, of none, or under a title of their own."""

    order: list[str] | None = None
    """The tasks in the order of learning; none for methods without an order."""
    title: str | None = None
    """Instead of an order."""
    task: str | None = None
    """Where each task has a block of its own."""
    rows: list[PublishedRow]
    """The lines."""

    def title_for(self, order: list[str] | None) -> str:
        """Title of the block here that lines of this order are to be compared with."""
        title = self.title or (order_title(order) if order else NO_ORDER)
        return f"{title}: {self.task}" if self.task else title


class PublishedTable(Strict):
    """A table of a paper. Values are percentages unless the title says otherwise."""

    title: str
    """What it shows."""
    source: str
    """Paper, and number of the table or figure."""
    measure: Literal["scores", "orders", "forgetting", "cost", "agreement", "agreement_by_task"] = "scores"
    """How its numbers are computed from runs: a key of ``analysis.measures.MEASURES``."""
    columns: list[str] | None = None
    """Its columns; those of a block's order, and the average, when not given."""
    digits: int = 1
    """Digits after the decimal point, as printed."""
    blocks: list[PublishedBlock]
    """Empty for a figure whose values are not printed."""
    notes: list[str]
    """What a reader must know to compare."""

    @model_validator(mode="after")
    def _a_value_for_each_column(self) -> PublishedTable:
        for block in self.blocks:
            for row in block.rows:
                for values in (row.values, row.sd or row.values):
                    if len(values) != len(self.columns_of(block)):
                        raise ValueError(f"{row.variant}: {values} are not one for each of {self.columns_of(block)}")
        return self

    def columns_of(self, block: PublishedBlock) -> list[str]:
        """Names of the values of a block's rows."""
        return self.columns or [*(block.order or []), AVERAGE]

    def cells(self) -> dict[str, dict[str, dict[str, Statistic]]]:
        """Block -> row -> column -> what was published. Blocks and rows come in the order in which they are printed,
        also where a row belongs to another block."""
        found: dict[str, dict[str, dict[str, Statistic]]] = {block.title_for(block.order): {} for block in self.blocks}
        lines = [(place, block, row) for block in self.blocks for place, row in enumerate(block.rows)]
        for _, block, row in sorted(lines, key=lambda line: line[0]):
            sds: Sequence[float | None] = row.sd or [None] * len(row.values)
            values = zip(self.columns_of(block), row.values, sds, strict=True)
            cells = {column: Statistic(mean, sd) for column, mean, sd in values}
            found[block.title_for(row.belongs_to or block.order)][row_of(row.variant, row.student)] = cells
        return found

    def students(self) -> tuple[int, ...]:
        """Numbers of the students that have a row."""
        return tuple(sorted({row.student for block in self.blocks for row in block.rows})) or (0,)


def keys() -> list[str]:
    """Names of all published tables."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def published_table(key: str) -> PublishedTable:
    """The table called ``key``, such as ``l4-table2``. Raises ConfigError with the nearest known name."""
    if key not in keys():
        raise ConfigError(f"--table {key}: no such published table. {nearest(key, keys())}")
    return PublishedTable.model_validate(yaml.safe_load((FOLDER / f"{key}.yaml").read_text(encoding="utf-8")))
