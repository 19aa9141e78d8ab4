"""``report``: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_l4.report.markdown import comparison, run_report
from ray_l4.store.atomic import write_text
from ray_l4.store.run_directory import RunDirectory


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(report)


def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of finished runs.")],
    full: Annotated[bool, typer.Option("--full", help="Print everything about each run, not one row each.")] = False,
) -> None:
    """Print finished runs as one Markdown table, and write each one's report.md."""
    runs = [RunDirectory.open(folder) for folder in run_dirs]
    rows = comparison([run.summary() for run in runs])
    for run in runs:
        text = run_report(run)
        write_text(run.path / "report.md", text)
        if full:
            typer.echo(text)
    typer.echo(rows)
