"""What ``data prepare --download`` shows while files arrive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from ray_l4.errors import ConfigError
from ray_l4.tasks.download import OnProgress
from ray_l4.tasks.source import ENVIRONMENT


def raw_folder(raw: Path | None) -> Path:
    """The folder to download into: ``raw``, else ``$RAY_L4_DATA/raw``, which need not exist yet.

    Raises:
        ConfigError: neither says where it is.
    """
    if raw is not None:
        return raw
    if folder := os.environ.get(ENVIRONMENT):
        return Path(folder) / "raw"
    raise ConfigError(
        f"--download needs a folder for the raw files: give --raw DIR, or set {ENVIRONMENT} to the folder that is to "
        "hold raw/."
    )


@contextmanager
def progress(console: Console) -> Iterator[OnProgress]:
    """A bar with bytes and speed for each file that is told of."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bars:
        bar_of: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in bar_of:
                bar_of[name] = bars.add_task(name, total=total)
            bars.update(bar_of[name], completed=done, total=total)

        yield report
