"""``run``, ``resume``, ``methods`` and ``doctor``."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml, load_cluster, load_experiment
from ray_l4.errors import RunDirectoryError
from ray_l4.methods import METHODS, graph_name, graph_of, learns_from, num_students, resolved

CLUSTER_PREFIX = "cluster."

_LEARNS_FROM = {"task": "task teacher", "previous": "earlier self"}
_TASKS = {"stream": "in turn", "separate": "each alone", "union": "all at once"}
"""Values of the method table as people say them."""
_ON_GRAPHS = (
    "each other: every student from all others, or as peers.topology says (ring, star, a list or a file of pairs)"
)

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value, e.g. optim.lr=1e-3 or cluster.evaluators.count=2."
    ),
]
ClusterOption = Annotated[
    Path | None, typer.Option("--cluster", metavar="PROFILE.yaml", help="Where to run; this machine when not given.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(run)
    app.command()(resume)
    app.command()(methods)
    app.command()(doctor)


def run(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to learn.")],
    cluster: ClusterOption = None,
    set_: SetOption = None,
    run_dir: Annotated[Path | None, typer.Option(help="New folder for the results; runs/... when not given.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration and placement, and stop.")
    ] = False,
) -> None:
    """Learn a stream of tasks."""
    overrides = list(set_ or [])
    for_cluster = [o.removeprefix(CLUSTER_PREFIX) for o in overrides if o.startswith(CLUSTER_PREFIX)]
    config = load_experiment(experiment, [o for o in overrides if not o.startswith(CLUSTER_PREFIX)])
    profile = load_cluster(cluster, for_cluster)
    config = resolved(config)
    peers = graph_of(config).size
    if dry_run:
        _print_plan(config, profile, peers)
        return
    folder = run_dir or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}-{config.method}-s{config.seed}"

    from ray_l4.run import execute  # torch and Ray take seconds to load: not before the files were read

    execute.run(config, profile, folder, shlex.join(["ray-l4", *sys.argv[1:]]), Console())


def resume(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN_DIR|ADDRESS", help="A run that did not finish: its folder, or its copy's address."),
    ],
    cluster: ClusterOption = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="New folder to which the copy at ADDRESS is brought first; runs/... when not given."),
    ] = None,
) -> None:
    """Go on with a run from its last finished stage."""
    folder = Path(run)
    if run_dir is not None or "://" in run:
        from ray_l4.store.mirror import Mirror  # Arrow takes long to load

        copy = Mirror.at(run)
        folder = run_dir or Path("runs") / copy.name
        copy.pull(folder)
        typer.echo(f"brought {copy.place} to {folder}")

    from ray_l4.run import execute
    from ray_l4.store.run_directory import RunDirectory

    directory = RunDirectory.open(folder)
    if (folder / "summary.json").is_file():
        raise RunDirectoryError(f"{folder}: this run has finished. See it with: ray-l4 report {folder}")
    execute.resume(directory, load_cluster(cluster) if cluster else directory.cluster(), Console())


def methods() -> None:
    """Print the table of methods."""
    summaries = _table_of_methods("in short")
    table = _table_of_methods("students", "loss", "labels", "learns from", "replay", "tasks")
    for row in METHODS.values():
        summaries.add_row(row.name, row.summary)
        table.add_row(
            row.name,
            str(row.peers),
            "+".join(row.heads),
            row.labels.replace("_", " "),
            _LEARNS_FROM[row.teacher] if row.teacher != "none" else "each other" if row.topology == "complete" else "–",
            row.replay if row.guard != "memory" else "as a guard",
            _TASKS[row.stages],
        )
    console = Console()
    console.print(summaries, "", table, "", _ON_GRAPHS, sep="\n")


def _table_of_methods(*columns: str) -> Table:
    """An empty table whose names are never cut, narrow enough for a terminal of 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column)
    return table


def doctor() -> None:
    """Say what this machine has, what is missing, and how to mend it."""
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


def _graph(config: ExperimentConfig) -> str:
    """By name and student by student."""
    described = learns_from(graph_name(config), num_students(config))
    return described if described.startswith("as listed") else f"{described} ({graph_of(config).in_words()})"


def _print_plan(config: ExperimentConfig, profile: ClusterConfig, peers: int) -> None:
    from ray_l4.cluster.placement import bundles, check_room, describe_request, local_resources

    typer.echo("# experiment\n" + dump_yaml(config))
    typer.echo("# cluster\n" + dump_yaml(profile))
    count = num_students(config)
    typer.echo(f"# {count} student{'s' if count > 1 else ''}; who learns from whom: {_graph(config)}")
    typer.echo(f"# placement: {describe_request(peers, profile)}")
    if profile.exchange.transport == "in_process":
        typer.echo("# all of them in this process, without Ray")
    elif profile.ray.address is None:
        check_room(peers, profile, [local_resources(profile)])
        typer.echo(
            f"# on a local cluster of this machine: {local_resources(profile)}; reserves {bundles(peers, profile)}"
        )
    else:
        typer.echo(f"# on the cluster at {profile.ray.address}, strategy {profile.placement.strategy}")
