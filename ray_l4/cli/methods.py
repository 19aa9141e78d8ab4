"""``methods``: the table of methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

_TEACHERS = {"task": "task teacher", "previous": "earlier self", "peers": "other peers"}
_STAGES = {"stream": "in turn", "separate": "each alone", "union": "all at once", "last": "the last"}
"""Values of the method table in words."""
_EACH_OTHER = (
    "each other: every student from all others, or as peers.topology says (ring, star, a list or a file of pairs)"
)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(methods)


def methods() -> None:
    """Print the table of methods."""
    from rich.console import Console

    from ray_l4.methods import METHODS

    summaries = _table("summary")
    details = _table("students", "loss", "labels", "learns from", "replay", "tasks")
    for row in METHODS.values():
        summaries.add_row(row.name, row.summary)
        details.add_row(
            row.name,
            str(row.peers),
            "+".join(row.heads),
            row.labels.replace("_", " ") if row.learns else "no training",
            _TEACHERS[row.teacher] if row.teacher != "none" else "each other" if row.topology == "complete" else "–",
            "as a guard" if row.guard_remembers else row.replay,
            _STAGES[row.stages],
        )
    Console().print(summaries, "", details, "", _EACH_OTHER, sep="\n")


def _table(*columns: str) -> Table:
    """Return an empty table that never truncates a method's name and fits a terminal of 80 columns."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column)
    return table
