"""``plan``: what a run will need of every device, and which profile has it, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ray_l4.cli.runs import CLUSTER_PREFIX, ClusterOption, SetOption
from ray_l4.config.loading import load_cluster, load_experiment
from ray_l4.methods import resolved

_DOES_NOT_FIT = 1
_PROFILES = Path("cluster_configs")
"""Where profiles are looked for, unless one of a folder was given."""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(plan)


def plan(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to learn.")],
    cluster: ClusterOption = None,
    set_: SetOption = None,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of every device, e.g. 16GiB; this machine's when not given."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=4, help="Length of the examples; the longest possible when not given.")
    ] = None,
    answer: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer; evaluation.reserve when not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, sizes in bytes.")] = False,
) -> None:
    """Predict memory, bytes exchanged and placement; exit 1, naming what would fit, if this profile does not."""
    overrides = list(set_ or [])
    for_cluster = [o.removeprefix(CLUSTER_PREFIX) for o in overrides if o.startswith(CLUSTER_PREFIX)]
    config = resolved(load_experiment(experiment, [o for o in overrides if not o.startswith(CLUSTER_PREFIX)]))
    profile = load_cluster(cluster, for_cluster)

    # PyTorch and Ray take seconds to load: not before the files were read.
    from ray_l4.planning import view
    from ray_l4.planning.plan import PlanRequest, advise, make_plan
    from ray_l4.planning.requirements import Estimator
    from ray_l4.planning.units import parse_size

    size = None if device_memory is None else parse_size(device_memory, "--device-memory")
    request, estimator = PlanRequest(config, size, tokens, answer), Estimator()
    console = Console(highlight=False)
    with Console(stderr=True).status("rehearsing a step without weights"):
        made = make_plan(request, profile, estimator)
        folder = cluster.parent if cluster else _PROFILES
        others = {str(path): load_cluster(path) for path in sorted(folder.glob("*.yaml")) if path != cluster}
        advice = None if made.fits else advise(request, profile, others, estimator)
    if as_json:
        typer.echo(json.dumps(view.as_json(made, advice)))
    else:
        for part in view.tables(made, advice, str(experiment)):
            console.print(part)
    if not made.fits:
        raise typer.Exit(_DOES_NOT_FIT)
