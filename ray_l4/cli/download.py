"""The downloads of ``data prepare --download``, with a progress bar for each file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from ray_l4.config.paths import DATA_VARIABLE, raw_from_environment
from ray_l4.errors import ConfigError, DataError
from ray_l4.tasks.download import OnProgress, download
from ray_l4.tasks.download.upstream import ORIGIN


def raw_folder(raw: Path | None) -> Path:
    """Return the folder to download into: ``raw``, else ``$RAY_L4_DATA/raw``, which need not exist yet.

    Raises ConfigError if neither is given.
    """
    if raw is not None:
        return raw
    if (folder := raw_from_environment()) is not None:
        return folder
    raise ConfigError(
        f"--download needs a folder for the raw files: give --raw DIR, or set {DATA_VARIABLE} to the folder that is to "
        "hold raw/."
    )


def download_tasks(tasks: Sequence[str], raw: Path, mirror: str | None, stop: bool) -> list[str]:
    """Download the raw files that ``tasks`` lack in ``raw``, and return one message for each task that failed.

    With ``stop``, raises the DataError of the first failure instead. ``mirror``: server to use instead of the origin.
    """
    problems = []
    console = Console(stderr=True)
    with _progress(console) as report:
        for name in tasks:
            try:
                for path in download(name, raw, report, mirror or ORIGIN):
                    console.print(f"downloaded {path}", highlight=False, soft_wrap=True)
            except DataError as error:
                if stop:
                    raise
                problems.append(f"{name}: {error}")
    return problems


@contextmanager
def _progress(console: Console) -> Iterator[OnProgress]:
    """Show a bar, with bytes and speed, for each file that is reported."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bars:
        bar_of: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in bar_of:
                bar_of[name] = bars.add_task(name, total=total)
            bars.update(bar_of[name], completed=done, total=total)

        yield report
