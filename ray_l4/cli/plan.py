"""``plan``: predict the memory of every device before anything is started, and the profile that has enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.options import ClusterOption, SetOption, WithOption, split_overrides

if TYPE_CHECKING:
    from ray_l4.config.cluster import ClusterConfig
    from ray_l4.config.experiment import ExperimentConfig
    from ray_l4.planning.plan import Plan

_DOES_NOT_FIT = 1


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(plan)


def plan(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to learn; of a protocol, every row of its table.")
    ],
    with_: WithOption = None,
    cluster: ClusterOption = None,
    set_: SetOption = None,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of every device, such as 16GiB; this machine's if not given."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=4, help="Length of an example in tokens; the longest possible if not given.")
    ] = None,
    answer: Annotated[
        int | None, typer.Option(min=1, help="Length of an answer in tokens; evaluation.reserve if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with sizes in bytes.")] = False,
) -> None:
    """Predict the memory, the exchanged bytes and the placement of a run.

    Of a protocol, one trial of every row is planned; the one that needs most is printed in full. Exits with 1, and
    names what would fit, if this profile does not.
    """
    from ray_l4.config.loading import load_cluster

    for_experiment, for_cluster = split_overrides(set_)
    rows = _rows(experiment, for_experiment, with_ or [])
    profile = load_cluster(cluster, for_cluster)

    from rich.console import Console

    from ray_l4.planning import view
    from ray_l4.planning.plan import PlanRequest, advise, make_plan
    from ray_l4.planning.requirements import Estimator
    from ray_l4.planning.units import parse_size

    size = None if device_memory is None else parse_size(device_memory, "--device-memory")
    requests = {label: PlanRequest(config, size, tokens, answer) for label, config in rows.items()}
    plans: dict[str, Plan] = {}
    estimator = Estimator()
    with Console(stderr=True).status("") as status:
        for number, (label, request) in enumerate(requests.items(), start=1):
            status.update(f"simulating a step without weights: {label} ({number} of {len(requests)})")
            plans[label] = make_plan(request, profile, estimator)
        largest = _largest(plans)
        made = plans[largest]
        advice = None if made.fits else advise(requests[largest], profile, _other_profiles(cluster), estimator)
    if as_json:
        import json

        row = {"row": largest, "rows": {label: _summary(each) for label, each in plans.items()}}
        typer.echo(json.dumps(view.as_json(made, advice) | (row if len(plans) > 1 else {})))
    else:
        console = Console(highlight=False)
        for line in _lines(plans, largest) if len(plans) > 1 else ():
            console.print(line, markup=False, soft_wrap=True)
        for part in view.tables(made, advice, str(experiment)):
            console.print(part)
    if not made.fits:
        raise typer.Exit(_DOES_NOT_FIT)


def _rows(path: Path, overrides: Sequence[str], overlays: Sequence[Path]) -> dict[str, ExperimentConfig]:
    """Return an experiment for every row of a protocol's table, by its label; of an experiment file, the experiment.

    The trials of a row differ in seed and order, on which memory does not depend.
    """
    from ray_l4.sweep.trials import SweepRequest, expand_protocol

    found: dict[str, ExperimentConfig] = {}
    for trial in expand_protocol(path, SweepRequest(overrides=overrides, overlays=overlays)).trials:
        found.setdefault(str(trial.experiment.variant), trial.experiment)
    return found


def _other_profiles(cluster: Path | None) -> dict[str, ClusterConfig]:
    """Return the other profiles of the profile's folder, or of the project, each by what ``--cluster`` calls it."""
    from ray_l4.config.loading import load_cluster
    from ray_l4.config.profile_names import PROFILES, profile_path

    own = profile_path(cluster) if cluster else PROFILES / "none"
    others = [path for path in sorted(own.parent.glob("*.yaml")) if path != own]
    return {path.stem if own.parent == PROFILES else str(path): load_cluster(path) for path in others}


def _largest(plans: Mapping[str, Plan]) -> str:
    """Return the row that needs most: one that does not fit, if there is one, then by the bytes of its devices."""
    return max(plans, key=lambda label: (not plans[label].fits, _needed(plans[label])))


def _needed(plan: Plan) -> int:
    return max((device.needed for device in plan.devices), default=0)


def _summary(plan: Plan) -> dict[str, object]:
    return {"fits": plan.fits, "needed": _needed(plan), "problems": list(plan.problems)}


def _lines(plans: Mapping[str, Plan], largest: str) -> list[str]:
    """Return a line for every row of the table, and one that says which is printed in full."""
    from ray_l4.planning.units import size_text

    width = max(map(len, plans))
    lines = [
        f"{label:<{width}}  needs {size_text(_needed(plan))} on its largest device: "
        f"{'fits' if plan.fits else plan.problems[0]}"
        for label, plan in plans.items()
    ]
    return [*lines, "", f"Of {len(plans)} rows, {largest} needs most:", ""]
