"""Our table and the published one merged, cell by cell, ready for printing."""

from __future__ import annotations

from dataclasses import dataclass

from ray_l4.report.aggregate import ResultBlock, ResultRow, ResultTable, Statistic
from ray_l4.report.paired import PairedTable
from ray_l4.report.tables.published_tables import PublishedTable


@dataclass(frozen=True)
class SheetCell:
    """Our value and the published one."""

    ours: Statistic | None
    published: Statistic | None
    best: bool
    """Whether ours is the best of our rows in its block."""


@dataclass(frozen=True)
class SheetRow:
    """A variant, ours and the paper's."""

    label: str
    runs: int
    """Number of our runs; 0 if only the paper has the row."""
    cells: tuple[SheetCell, ...]


@dataclass(frozen=True)
class SheetBlock:
    """Rows that can be compared with each other."""

    title: str
    rows: tuple[SheetRow, ...]


@dataclass(frozen=True)
class Sheet:
    """A table as it is printed."""

    title: str
    setting: str
    """Models, training and seeds of our runs."""
    columns: tuple[str, ...]
    blocks: tuple[SheetBlock, ...]
    notes: tuple[str, ...]
    digits: int = 1
    """Digits after the decimal point of our values."""
    published_digits: int = 1
    """Digits after the decimal point of the published values."""
    key: str = ""
    """Name of the published table; empty without one."""
    scale: float | None = None
    """Share of the protocol that was run; None if it is unknown."""
    paired: PairedTable | None = None
    """Differences of all variants to one of them, printed below the rest."""

    @property
    def has_published(self) -> bool:
        """Whether any cell has a published value."""
        return any(cell.published for block in self.blocks for row in block.rows for cell in row.cells)


PublishedCells = dict[str, dict[str, Statistic]]
"""Row -> column -> published value."""


def blocks(
    table: ResultTable, columns: tuple[str, ...], published: dict[str, PublishedCells]
) -> tuple[SheetBlock, ...]:
    """Return the blocks of ``table`` in the order of the paper, each with the rows of both, the paper's first.

    A block of the paper of which we have no run is left out; see ``missing``.
    """
    ours = {block.title: block for block in table.blocks}
    titles = [title for title in published if title in ours] + [title for title in ours if title not in published]
    return tuple(_block(table, ours[title], columns, published.get(title, {})) for title in titles)


def missing(table: ResultTable, published: dict[str, PublishedCells]) -> list[str]:
    """Return the titles of the paper's blocks of which we have no run."""
    ours = {block.title for block in table.blocks}
    return [title for title in published if title not in ours]


def columns(table: ResultTable, published: PublishedTable | None) -> tuple[str, ...]:
    """Return the paper's columns; without a published table, all of ours that hold a value."""
    if published is None:
        rows = [row for block in table.blocks for row in block.rows]
        return tuple(column for column in table.columns if any(row.cells[column] for row in rows))
    return columns_of_paper(published)


def columns_of_paper(published: PublishedTable) -> tuple[str, ...]:
    """Return all columns of a published table. If each block has an order of its own, the first block decides."""
    named = published.columns or []
    return tuple(named or dict.fromkeys(name for block in published.blocks for name in published.columns_of(block)))


def _block(table: ResultTable, block: ResultBlock, columns: tuple[str, ...], published: PublishedCells) -> SheetBlock:
    rows = {row.label: row for row in block.rows}
    best = {column: table.best(block, column) for column in columns}

    def merged(label: str) -> SheetRow:
        row = rows.get(label, ResultRow(label, 0, {}))
        theirs = published.get(label, {})
        cells = (SheetCell(row.cells.get(name), theirs.get(name), label in best[name]) for name in columns)
        return SheetRow(label, row.runs, tuple(cells))

    return SheetBlock(block.title, tuple(merged(label) for label in dict.fromkeys([*published, *rows])))
