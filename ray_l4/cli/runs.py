"""``run``, ``resume`` and ``doctor``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli import supervision
from ray_l4.cli.options import (
    ClusterOption,
    SetOption,
    SuperviseOption,
    TrackOption,
    WithOption,
    split_overrides,
    tracked,
)
from ray_l4.config.paths import expand_home
from ray_l4.config.redaction import redacted_command

if TYPE_CHECKING:
    from ray_l4.config.cluster import ClusterConfig
    from ray_l4.config.experiment import ExperimentConfig


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(run)
    app.command()(resume)
    app.command()(doctor)


def run(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to learn.")],
    with_: WithOption = None,
    cluster: ClusterOption = None,
    set_: SetOption = None,
    track: TrackOption = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="New folder for the results; a new one in runs/ if not given.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration and the placement, then stop.")
    ] = False,
    supervise: SuperviseOption = False,
) -> None:
    """Learn a stream of tasks."""
    from ray_l4.config.loading import load_cluster
    from ray_l4.config.protocol import load_with_overlays

    for_experiment, for_cluster = split_overrides(set_)
    config = load_with_overlays(experiment, for_experiment, with_ or [])
    profile = tracked(load_cluster(cluster, for_cluster), track)

    from ray_l4.methods import resolved
    from ray_l4.store.run_directory import refuse_taken

    config = resolved(config)
    if dry_run:
        if run_dir is not None:
            refuse_taken(run_dir)
        _print_dry_run(config, profile)
        return
    with nullcontext(run_dir) if run_dir is not None else _new_folder(config) as folder:
        if supervision.wanted(supervise, lambda: _starts_ray(profile)):
            refuse_taken(folder)
            named = [] if run_dir is not None else ["--run-dir", str(folder)]
            raise typer.Exit(supervision.supervise([*sys.argv[1:], *named], folder, profile))
        from rich.console import Console

        from ray_l4.run import execute

        execute.run(config, profile, folder, redacted_command(["ray-l4", *sys.argv[1:]]), Console())


def resume(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN_DIR|ADDRESS", help="An unfinished run: its folder, or the address of its copy."),
    ],
    cluster: ClusterOption = None,
    track: TrackOption = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="New folder into which to copy the run at ADDRESS first; one in runs/ if not given."),
    ] = None,
    supervise: SuperviseOption = False,
) -> None:
    """Resume a run where it ended."""
    folder = expand_home(run)
    if run_dir is not None or "://" in run:
        from ray_l4.store.mirror import Mirror

        copy = Mirror.at(run)
        folder = run_dir or Path("runs") / copy.name
        copy.pull(folder)
        typer.echo(f"copied {copy.address} to {folder}")

    from ray_l4.config.loading import load_cluster
    from ray_l4.errors import RunDirectoryError
    from ray_l4.store.run_directory import RunDirectory

    directory = RunDirectory.open(folder)
    if directory.is_complete():
        raise RunDirectoryError(f"{folder}: this run has finished. Report it with: ray-l4 report {folder}")
    profile = tracked(load_cluster(cluster) if cluster else directory.cluster(), track)
    if supervision.wanted(supervise, lambda: _starts_ray(profile)):
        given = [*_pair("--cluster", cluster), *_pair("--track", track)]
        raise typer.Exit(supervision.supervise(["resume", str(folder), *given], folder, profile))
    from rich.console import Console

    from ray_l4.run import execute

    go_on = execute.conclude if directory.has_finished() else execute.resume
    go_on(directory, profile, Console())


def _starts_ray(profile: ClusterConfig) -> bool:
    """Return whether a run starts a Ray session of its own, which this machine can start again."""
    return not profile.in_one_process and profile.ray.address is None


def _pair(option: str, value: object) -> list[str]:
    return [] if value is None else [option, str(value)]


def doctor() -> None:
    """Check this machine for what a run needs, and say how to provide what is missing."""
    from rich.console import Console

    from ray_l4.monitor.doctor import examine

    console = Console()
    findings = examine()
    for finding in findings:
        sign = "[green]ok[/]     " if finding.ok else ("[red]missing[/]" if finding.needed else "[yellow]note[/]   ")
        console.print(f"{sign} {finding.subject}: {finding.found}", highlight=False)
        if finding.remedy:
            console.print(f"        {finding.remedy}", highlight=False)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)


@contextmanager
def _new_folder(config: ExperimentConfig) -> Iterator[Path]:
    """Create a folder in runs/ that no other run has, even one that starts now; remove it if the run does not begin."""
    from ray_l4.store.names import folder_name, make_new_folder

    name = folder_name(f"{config.name}-{config.method}-s{config.seed}")
    folder = make_new_folder(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}")
    try:
        yield folder
    finally:
        with suppress(OSError):  # not empty: the run has begun
            folder.rmdir()


def _print_dry_run(config: ExperimentConfig, profile: ClusterConfig) -> None:
    """Print the resolved configuration and what it reserves.

    Raises the error with which a run would end before it starts, as far as settings, the user's own data and the
    resources of this machine tell.
    """
    from ray_l4.cluster.placement import bundles, check_room, describe_request, local_resources
    from ray_l4.config.loading import dump_yaml
    from ray_l4.config.text import counted
    from ray_l4.methods import graph_of, num_students
    from ray_l4.setup.early_check import check_own_data, check_raw_data, check_settings

    check_settings(config, profile)
    check_raw_data(config)
    check_own_data(config)
    peers, count = graph_of(config).size, num_students(config)
    typer.echo("# experiment\n" + dump_yaml(config))
    typer.echo("# cluster\n" + dump_yaml(profile))
    typer.echo(f"# {counted(count, 'student')}; who learns from whom: {_describe_graph(config)}")
    typer.echo(f"# placement: {describe_request(peers, profile)}")
    if profile.in_one_process:
        typer.echo("# students and evaluators run in this process, without Ray")
    elif profile.ray.address is None:
        resources = local_resources(profile)
        check_room(peers, profile, [resources])
        typer.echo(f"# on a local cluster of this machine: {resources}; reserves {bundles(peers, profile)}")
    else:
        typer.echo(f"# on the cluster at {profile.ray.address}, strategy {profile.placement.strategy}")


def _describe_graph(config: ExperimentConfig) -> str:
    """Describe who learns from whom: the graph's name, then the teachers of every student."""
    from ray_l4.methods import graph_in_words, graph_name, graph_of, num_students

    described = graph_in_words(graph_name(config), num_students(config))
    return described if described.startswith("as listed") else f"{described} ({graph_of(config).in_words()})"
