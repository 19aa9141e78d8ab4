"""Our table and the published one laid over each other: what the renderers print, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.published_tables import PublishedTable
from ray_l4.report.aggregate import Block, Row, Statistic, Table


@dataclass(frozen=True)
class Cell:
    """One place of a sheet."""

    ours: Statistic | None
    published: Statistic | None
    best: bool
    """Whether ours is the best of our rows in its part."""


@dataclass(frozen=True)
class Line:
    """A variant, ours and the paper's."""

    label: str
    runs: int
    """Number of our runs; 0 where only the paper has the row."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Part:
    """Lines that can be compared with each other."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """A table as it is printed."""

    title: str
    setting: str
    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    digits: int = 1
    """Digits after the decimal point of our values."""
    published_digits: int = 1
    """The same of the published ones."""
    key: str = ""
    """Name of the published table; empty without one."""
    scale: float | None = None
    """Share of the protocol that was run; None where it is not known."""

    @property
    def has_published(self) -> bool:
        """Whether there is a published value anywhere."""
        return any(cell.published for part in self.parts for line in part.lines for cell in line.cells)


Cells = dict[str, dict[str, Statistic]]
"""Row -> column -> value."""


def parts(table: Table, columns: tuple[str, ...], published: dict[str, Cells]) -> tuple[Part, ...]:
    """The blocks of ``table`` in the order of the paper, each with the rows of both, the paper's first.

    A block of the paper of which we have no run is left out; see ``missing``.
    """
    ours = {block.title: block for block in table.blocks}
    titles = [title for title in published if title in ours] + [title for title in ours if title not in published]
    return tuple(_part(table, ours[title], columns, published.get(title, {})) for title in titles)


def missing(table: Table, published: dict[str, Cells]) -> list[str]:
    """Titles of the paper's blocks of which we have no run."""
    ours = {block.title for block in table.blocks}
    return [title for title in published if title not in ours]


def columns(table: Table, published: PublishedTable | None) -> tuple[str, ...]:
    """The paper's columns; without a paper's table all of ours that hold a value."""
    if published is None:
        rows = [row for block in table.blocks for row in block.rows]
        return tuple(column for column in table.columns if any(row.cells[column] for row in rows))
    return columns_of_paper(published)


def columns_of_paper(published: PublishedTable) -> tuple[str, ...]:
    """All columns of a published table. Where they stand in each block's order, the first block decides."""
    named = published.columns or []
    return tuple(named or dict.fromkeys(name for block in published.blocks for name in published.columns_of(block)))


def _part(table: Table, block: Block, columns: tuple[str, ...], published: Cells) -> Part:
    rows = {row.label: row for row in block.rows}
    best = {column: table.best(block, column) for column in columns}

    def line(label: str) -> Line:
        row = rows.get(label, Row(label, 0, {}))
        theirs = published.get(label, {})
        cells = (Cell(row.cells.get(name), theirs.get(name), label in best[name]) for name in columns)
        return Line(label, row.runs, tuple(cells))

    return Part(block.title, tuple(line(label) for label in dict.fromkeys([*published, *rows])))
