"""``run``, ``resume`` and ``doctor``."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.options import ClusterOption, SetOption, TrackOption, split_overrides, tracked

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
    cluster: ClusterOption = None,
    set_: SetOption = None,
    track: TrackOption = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="New folder for the results; a new one in runs/ if not given.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration and the placement, then stop.")
    ] = False,
) -> None:
    """Learn a stream of tasks."""
    from ray_l4.config.loading import load_cluster, load_experiment

    for_experiment, for_cluster = split_overrides(set_)
    config = load_experiment(experiment, for_experiment)
    profile = tracked(load_cluster(cluster, for_cluster), track)

    from ray_l4.methods import resolved

    config = resolved(config)
    if dry_run:
        _print_dry_run(config, profile)
        return
    folder = run_dir or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}-{config.method}-s{config.seed}"

    from rich.console import Console

    from ray_l4.run import execute

    execute.run(config, profile, folder, shlex.join(["ray-l4", *sys.argv[1:]]), Console())


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
) -> None:
    """Resume a run after its last finished stage."""
    folder = Path(run)
    if run_dir is not None or "://" in run:
        from ray_l4.store.mirror import Mirror

        copy = Mirror.at(run)
        folder = run_dir or Path("runs") / copy.name
        copy.pull(folder)
        typer.echo(f"copied {copy.address} to {folder}")

    from rich.console import Console

    from ray_l4.config.loading import load_cluster
    from ray_l4.errors import RunDirectoryError
    from ray_l4.store.run_directory import RunDirectory

    directory = RunDirectory.open(folder)
    if (folder / "summary.json").is_file():
        raise RunDirectoryError(f"{folder}: this run has finished. Report it with: ray-l4 report {folder}")
    profile = tracked(load_cluster(cluster) if cluster else directory.cluster(), track)

    from ray_l4.run import execute

    execute.resume(directory, profile, Console())


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


def _print_dry_run(config: ExperimentConfig, profile: ClusterConfig) -> None:
    """Print the resolved configuration and what it reserves. Raises ClusterError if this machine has no room for it."""
    from ray_l4.cluster.placement import bundles, check_room, describe_request, local_resources
    from ray_l4.config.loading import dump_yaml
    from ray_l4.methods import graph_of, num_students
    from ray_l4.tasks.validation import check_validation

    check_validation(config.stream, config.evaluation.validation)
    peers, count = graph_of(config).size, num_students(config)
    typer.echo("# experiment\n" + dump_yaml(config))
    typer.echo("# cluster\n" + dump_yaml(profile))
    typer.echo(f"# {count} student{'s' if count > 1 else ''}; who learns from whom: {_describe_graph(config)}")
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
