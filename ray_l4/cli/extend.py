"""``extend``: further tasks for a run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ray_l4.cli.options import ClusterOption, SetOption, TrackOption, split_overrides, tracked
from ray_l4.config.paths import expand_home
from ray_l4.config.redaction import redacted_command


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(extend)


def extend(
    run: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run, finished or interrupted.")],
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="What to learn next, in order: a task (mini.rest), data of a new or an old one (NAME=FOLDER), or a "
            "YAML file with a stream.",
        ),
    ],
    metric: Annotated[str | None, typer.Option(help="Metric of a new task that is given as NAME=FOLDER.")] = None,
    set_: SetOption = None,
    cluster: ClusterOption = None,
    track: TrackOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the stages to come, check the data, then stop.")
    ] = False,
) -> None:
    """Learn further tasks in a run, or new examples of old ones."""
    from ray_l4.config.loading import load_cluster
    from ray_l4.config.stream_items import stream_items
    from ray_l4.store.run_directory import RunDirectory

    for_experiment, for_cluster = split_overrides(set_)
    directory = RunDirectory.open(expand_home(run))
    items = stream_items(tasks, for_experiment, metric, directory.experiment().tasks)
    given = load_cluster(cluster, for_cluster) if cluster or for_cluster else directory.cluster()
    profile = tracked(given, track)
    from rich.console import Console

    from ray_l4.run import execute

    if dry_run:
        typer.echo(execute.extension_plan(directory, items, profile))
        return
    command = redacted_command(["ray-l4", *sys.argv[1:]])
    execute.extend(directory, items, profile, command, Console())
