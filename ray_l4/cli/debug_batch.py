"""``debug-batch``: a step whose loss or gradient was not finite, repeated in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.model_options import TrustOption

if TYPE_CHECKING:
    from rich.console import Console

    from ray_l4.setup.failed_step import Repeated
    from ray_l4.store.failed_steps import StepPlace

_MOST = 8
"""Modules and parameters shown with their ranges: those with the largest values."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("debug-batch")(debug_batch)


def debug_batch(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of the run that stopped.")],
    student: Annotated[int | None, typer.Option(min=0, help="The failed step of this student only.")] = None,
    trust_custom_code: TrustOption = False,
) -> None:
    """Repeat the steps of a run whose loss or gradient was not finite, and show where that begins."""
    from ray_l4.store.failed_steps import failed_steps
    from ray_l4.store.run_directory import RunDirectory

    run = RunDirectory.open(run_dir)
    places = failed_steps(run, student)

    from rich.console import Console

    from ray_l4.setup.failed_step import repeat

    for place in places:
        _show(Console(highlight=False), place, repeat(run, place, trust_custom_code))


def _show(console: Console, place: StepPlace, repeated: Repeated) -> None:
    from rich.markup import escape
    from rich.table import Table

    found = repeated.finding
    console.print(
        f"student {place.student}, stage {place.stage}, step {place.step}; learning rate {repeated.why['lr']:g}"
    )
    console.print("; ".join(f"{name} {value:g}" for name, value in found.figures.items()))
    table = Table("example", "task", "id", "origin", "head", "loss", "first wrong position", "text")
    rows = repeated.batch.to_pylist()
    for index, head, loss, position in found.losses:
        row = rows[index]
        text = repeated.tokenizer.decode(row["ids"])
        own = (str(index), row["task"], row["sample_id"], row["origin"], head, f"{loss:.4f}")
        table.add_row(*map(escape, own), "-" if position is None else str(position), escape(text))
    console.print(table)
    console.print(f"first output that is not finite: {found.first_output or 'none'}")
    console.print(f"first gradient that is not finite: {found.first_gradient or 'none'}")
    ranges = Table("largest outputs", "magnitude", "largest weights", "from", "to")
    outputs = sorted(found.outputs.items(), key=lambda own: not own[1] <= 0 and -own[1])[:_MOST]
    weights = sorted(found.weights.items(), key=lambda own: -max(map(abs, own[1])))[:_MOST]
    for (module, size), (name, (low, high)) in zip(outputs, weights, strict=False):
        ranges.add_row(module, f"{size:.4g}", name, f"{low:.4g}", f"{high:.4g}")
    console.print(ranges)
