"""``report``: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PAGE = "report.html"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(report)


def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of finished runs.")],
    full: Annotated[
        bool, typer.Option("--full", help="Print the whole report of every run, not one row each.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"HTML page to write; if not given, {PAGE} in the run's folder, or here if there are several runs."
        ),
    ] = None,
) -> None:
    """Print finished runs as one Markdown table.

    Also writes the report.md of every run, and one HTML page about all of them.
    """
    from ray_l4.errors import ConfigError
    from ray_l4.report.finished_run import FinishedRun

    runs = [FinishedRun.open(folder) for folder in run_dirs]
    page = out or (runs[0].path / PAGE if len(runs) == 1 else Path(PAGE))
    if page.is_dir():
        raise ConfigError(f"--out {page}: is a folder; give the name of the page to write, such as {page / PAGE}")

    from ray_l4.report.html.page import render
    from ray_l4.report.markdown import comparison, run_report
    from ray_l4.store.atomic import write_text

    rows = comparison(runs)
    for run in runs:
        text = run_report(run)
        write_text(run.path / "report.md", text)
        if full:
            typer.echo(text)
    typer.echo(rows)
    write_text(page, render(runs))
    typer.echo(f"\n{page}")
