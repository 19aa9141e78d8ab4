"""``report``: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_l4.errors import ConfigError
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.page import render
from ray_l4.report.markdown import comparison, run_report
from ray_l4.store.atomic import write_text

PAGE = "report.html"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(report)


def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of finished runs.")],
    full: Annotated[bool, typer.Option("--full", help="Print everything about each run, not one row each.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"The HTML page to write; {PAGE} in the run's folder, or here for several runs, when not given."
        ),
    ] = None,
) -> None:
    """Print finished runs as one Markdown table; write each one's report.md, and one HTML page about all of them."""
    runs = [FinishedRun.open(folder) for folder in run_dirs]
    rows = comparison(runs)
    place = out or (runs[0].path / PAGE if len(runs) == 1 else Path(PAGE))
    if place.is_dir():
        raise ConfigError(f"--out {place}: is a folder; give the name of the page to write, such as {place / PAGE}")
    for run in runs:
        text = run_report(run)
        write_text(run.path / "report.md", text)
        if full:
            typer.echo(text)
    typer.echo(rows)
    write_text(place, render(runs))
    typer.echo(f"\n{place}")
