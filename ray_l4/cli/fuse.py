"""``fuse``: one model from the peers of a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.options import ClusterOption, SetOption, TrackOption, split_overrides, tracked
from ray_l4.config.paths import expand_home
from ray_l4.config.redaction import redacted_command

if TYPE_CHECKING:
    from ray_l4.config.experiment import ExperimentConfig
    from ray_l4.store.run_directory import RunDirectory


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(fuse)


def fuse(
    run: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A finished run with two students or more.")],
    run_dir: Annotated[
        Path | None, typer.Option(help="New folder for the results; RUN_DIR/fused if not given.")
    ] = None,
    set_: SetOption = None,
    cluster: ClusterOption = None,
    track: TrackOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print who teaches and what is learned, check the data, then stop.")
    ] = False,
) -> None:
    """Distil the peers of a finished run into one model, which costs one to serve."""
    from ray_l4.config.loading import load_cluster
    from ray_l4.setup.peer_teachers import fusable
    from ray_l4.store.mirror import MIRROR_NAME_KEY
    from ray_l4.store.run_directory import RunDirectory, refuse_taken

    for_experiment, for_cluster = split_overrides(set_)
    peers = RunDirectory.open(expand_home(run))
    folder = run_dir or peers.path / "fused"
    refuse_taken(folder)
    found = fusable(peers)
    config = _experiment(peers, found.students, for_experiment)
    given = load_cluster(cluster, for_cluster) if cluster or for_cluster else peers.cluster()
    profile = tracked(given, track)
    from rich.console import Console

    from ray_l4.run import execute

    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    if dry_run:
        typer.echo(execute.fusion_plan(peers, config, profile))
        return
    # Beside the copy of the run itself in a storage, which may hold those of other fused runs too.
    named = {MIRROR_NAME_KEY: f"{peers.path.resolve().name}-{folder.name}"} if run_dir is None else {}
    execute.run(config, profile, folder, redacted_command(["ray-l4", *sys.argv[1:]]), Console(), named)


def _experiment(peers: RunDirectory, students: list[int], overrides: list[str]) -> ExperimentConfig:
    """Return the experiment that distils ``students`` of a run, with ``--set`` values.

    Raises ConfigError if one of these is wrong, or is that of a setting which the peers have decided.
    """
    from ray_l4.config.loading import with_overrides
    from ray_l4.errors import ConfigError
    from ray_l4.methods import fusing, resolved

    for text in overrides:
        key = text.partition("=")[0].strip()
        if not key.startswith(_SETTABLE):
            raise ConfigError(
                f"--set {text}: {key} is that of the run whose peers are fused; what may differ is "
                f"{', '.join(_SETTABLE)}"
            )
    asked = with_overrides(fusing(peers.experiment(), peers.path, students), overrides).teachers.students
    unknown = sorted({*asked} - {*students})
    if unknown:
        raise ConfigError(
            f"--set teachers.students: {peers.path} has no student {unknown[0]} that can teach; expected some of "
            f"{', '.join(map(str, students))}"
        )
    # Of the students that were asked for, not of all: the first one's settings are those of the fused one.
    return resolved(with_overrides(fusing(peers.experiment(), peers.path, asked), overrides))


_SETTABLE = (
    *("name", "variant", "seed", "training.", "optim.", "distillation.", "checkpoint.", "evaluation.when"),
    "teachers.students",
)
"""Settings of the fused student that need not be those of the peers: keys, or how they begin."""
