"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.errors import ConfigError

if TYPE_CHECKING:
    from ray_l4.config.cluster import ClusterConfig


SuperviseOption = Annotated[
    bool,
    typer.Option(
        "--supervise/--no-supervise",
        help="Go on in a new Ray session if that on this machine dies, and start again what was killed.",
    ),
]


def _profiles(incomplete: str) -> list[str]:
    """Return what a shell suggests for the name of a profile."""
    from ray_l4.config.profile_names import PROFILES

    return sorted(path.stem for path in PROFILES.glob(f"{incomplete}*.yaml"))


WithOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--with", metavar="OVERLAY.yaml", help="Partial file whose values replace the experiment's. Repeatable."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value, such as optim.lr=1e-3 or cluster.evaluators.count=2. Repeatable.",
    ),
]
ClusterOption = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="PROFILE",
        help="Cluster profile: a file, or the name of one that comes with the project (laptop); this machine if not "
        "given.",
        autocompletion=_profiles,
    ),
]
TrackOption = Annotated[
    str | None,
    typer.Option("--track", metavar="wandb|mlflow", help="Send the curves to this tracker too, beside TensorBoard."),
]
RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUNS...", help="Folders of finished runs or of sweeps; others are skipped.")
]
RawOption = Annotated[
    Path | None, typer.Option("--raw", help="Folder of the raw data sets; $RAY_L4_DATA/raw if not given.")
]
OutputOption = Annotated[Path | None, typer.Option(help="File to which the JSON lines are also written.")]


def split_overrides(overrides: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Split the values of ``--set`` into those for the experiment and those for the cluster profile.

    The latter are returned without their prefix ``cluster.``.
    """
    from ray_l4.config.loading import CLUSTER_PREFIX

    texts = overrides or ()
    for_experiment = [text for text in texts if not text.startswith(CLUSTER_PREFIX)]
    return for_experiment, [text.removeprefix(CLUSTER_PREFIX) for text in texts if text.startswith(CLUSTER_PREFIX)]


def tracked(profile: ClusterConfig, track: str | None) -> ClusterConfig:
    """Return the profile with the tracker that ``--track`` names, if any.

    Raises ConfigError if there is no such tracker, or if its package is not installed.
    """
    from ray_l4.monitor.tracking import check_tracker

    name = track or profile.track
    if name is None:
        return profile
    check_tracker(name)
    return profile.model_copy(update={"track": name})


def split_list(text: str, option: str) -> list[str]:
    """Split a comma-separated value. Raises ConfigError, which names ``option``, if a part is empty."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{option} {text}: expected values separated by commas")
    return parts
