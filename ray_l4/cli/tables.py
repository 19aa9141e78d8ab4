"""``table`` and ``figure``: finished runs as the papers show theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.options import RunsArgument
from ray_l4.report.figures.kinds import KINDS

if TYPE_CHECKING:
    from ray_l4.report.results import Results

PartialOption = Annotated[bool, typer.Option("--partial", help="Leave out runs that have not finished.")]
OverEpochsOption = Annotated[
    bool,
    typer.Option(
        "--over-epochs",
        help="Measure forgetting from the best score after any epoch (L4, Table 3), not only after a whole task.",
    ),
]

AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="VARIANT|none",
        help="Show the paired differences of all other variants to this one; sweep.against of the sweep if not given.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(table)
    app.command()(figure)


def table(
    runs: RunsArgument,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|none",
            help="Published table to compare with, such as l4-table2, or none; that of the sweep if not given.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="markdown|latex|csv", help="By the suffix of --out if not given, else markdown."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file instead of printing.")] = None,
    student: Annotated[int | None, typer.Option(metavar="N", help="Student to show, counted from 0.")] = None,
    partial: PartialOption = False,
    over_epochs: OverEpochsOption = False,
    against: AgainstOption = None,
) -> None:
    """Print finished runs as a table: variants by tasks, mean and deviation over seeds, beside published values."""
    from ray_l4.report.out_file import check_file, write_out
    from ray_l4.report.tables.build import build, chosen_table
    from ray_l4.report.tables.render import format_of

    if out is not None:
        check_file(out, "--out")
    render = format_of(format, out)
    results = _load(runs, partial, over_epochs, against)
    text = render(build(results, chosen_table(results, table), student))
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_out(text, out)
        typer.echo(out)


def figure(
    runs: RunsArgument,
    kind: Annotated[str, typer.Option(metavar="KIND", help=f"One of {', '.join(KINDS)}.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write: .png, .svg or .pdf.")],
    student: Annotated[int, typer.Option(metavar="N", help="Student to show, counted from 0.")] = 0,
    partial: PartialOption = False,
    over_epochs: OverEpochsOption = False,
    against: AgainstOption = None,
) -> None:
    """Draw finished runs as a figure; docs/ANALYSIS.md shows what each kind needs."""
    from ray_l4.report.figures.kinds import draw, known_kind

    known_kind(kind)
    results = _load(runs, partial, over_epochs, against)

    from ray_l4.report.figures.style import save

    save(draw(kind, results, student), out)
    typer.echo(out)


def _load(paths: list[Path], partial: bool, over_epochs: bool, against: str | None) -> Results:
    """Read the runs, and say on standard error which paths hold none."""
    from ray_l4.report.results import load

    results = load(paths, partial=partial, over_epochs=over_epochs, against=against)
    for note in results.found.notes(unfinished=False):  # a table names its unfinished runs itself
        typer.echo(note, err=True)
    return results
