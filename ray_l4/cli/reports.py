"""``report``: finished runs side by side; ``rescore``: their scores computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ray_l4.run.rescoring import Change

PAGE = "report.html"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(report)
    app.command()(rescore)


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


def rescore(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of finished runs.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the new scores, and write nothing.")] = False,
) -> None:
    """Compute the scores of finished runs again.

    They follow from the stored answers, with the metrics of this version. Prints every task's last score, old and new.
    """
    from ray_l4.store.run_directory import RunDirectory

    runs = [RunDirectory.open(folder) for folder in run_dirs]
    for run in runs:
        run.summary()  # refuse all before the first is changed

    from ray_l4.run.rescoring import rescore as rescored

    for run in runs:
        for folder, changes in rescored(run, write=not dry_run).items():
            for line in _lines(folder, changes):
                typer.echo(line)


def _lines(folder: Path, changes: Sequence[Change]) -> Iterator[str]:
    """Yield the number of changed scores, then a line for each student and task about its last score."""
    changed = [change for change in changes if change.old != change.new]
    yield f"{folder}: {len(changes)} scores computed again, {len(changed)} changed"
    last = {(change.cell.student, change.cell.task): change for change in changes}  # in order of stage and epoch
    for (student, task), change in last.items():
        old, new = change.old, change.new
        after = f"{'' if new.metric == old.metric else f'{new.metric} '}{new.value:.3f}"
        outcome = "(unchanged)" if old == new else f"-> {after}"
        yield f"  student {student}, {task}: {old.metric} {old.value:.3f} {outcome}"
