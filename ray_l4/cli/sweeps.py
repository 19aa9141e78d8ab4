"""``sweep``: all runs of a protocol, and their table."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ray_l4.cli.runs import CLUSTER_PREFIX, ClusterOption, SetOption
from ray_l4.config.loading import load_cluster
from ray_l4.config.strict_yaml import parse
from ray_l4.errors import ConfigError
from ray_l4.sweep.trials import MAX_TRIALS, Orders, Sweep, SweepRequest, expand_protocol

GridOption = Annotated[
    list[str] | None,
    typer.Option("--grid", metavar="KEY=V1,V2", help="Try every variant with these values; may be given many times."),
]
OrdersOption = Annotated[
    str | None,
    typer.Option(metavar="all|LIST", help="Orders of the tasks: all, or lists such as woz.en:wikisql,wikisql:woz.en."),
]
SeedsOption = Annotated[
    str | None, typer.Option(metavar="N|LIST", help="How many seeds, or which (0,7; one alone as 7,).")
]
MethodsOption = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Only these rows: labels of the protocol, or any methods (lamol,l4)."),
]
WithOption = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="OVERLAY.yaml", help="A partial file whose values replace the protocol's."),
]


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(sweep)


def sweep(
    protocol: Annotated[Path, typer.Argument(metavar="PROTOCOL.yaml", help="An experiment and what to vary of it.")],
    grid: GridOption = None,
    orders: OrdersOption = None,
    seeds: SeedsOption = None,
    methods: MethodsOption = None,
    scale: Annotated[float, typer.Option(help="Share of the examples and epochs, above 0 and at most 1.")] = 1.0,
    with_: WithOption = None,
    set_: SetOption = None,
    cluster: ClusterOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; runs/NAME when not given.")] = None,
    max_trials: Annotated[int, typer.Option(min=1, help="Refuse more trials than this.")] = MAX_TRIALS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials, and stop.")] = False,
) -> None:
    """Run all trials of a protocol that are not done yet, and print their table."""
    overrides, overlays = list(set_ or []), list(with_ or [])
    request = SweepRequest(
        overrides=[text for text in overrides if not text.startswith(CLUSTER_PREFIX)],
        overlays=overlays,
        scale=scale,
        methods=None if methods is None else _listed(methods, "--methods"),
        grid=dict(map(_grid_values, grid or [])),
        orders=None if orders is None else _orders(orders),
        seeds=None if seeds is None else _seeds(seeds),
        max_trials=max_trials,
    )
    expanded = expand_protocol(protocol, request)
    profile = load_cluster(
        cluster, [text.removeprefix(CLUSTER_PREFIX) for text in overrides if text.startswith(CLUSTER_PREFIX)]
    )
    # Torch and Ray take seconds to load: not before the files were read.
    from ray_l4.sweep.directory import SweepDirectory
    from ray_l4.sweep.execute import check_fit, describe_states, run_sweep
    from ray_l4.sweep.run_trial import trial_bundles

    directory = SweepDirectory(out or _default_path(expanded, overlays))
    if dry_run:
        states = directory.states(expanded)
        check_fit(expanded.trials, profile)
        for trial in expanded.trials:
            typer.echo(f"{states[trial.name]:<6} {trial.name}  reserves {trial_bundles(trial, profile)}")
        typer.echo(f"{expanded.title}: {describe_states(states.values())}, in {directory.path}")
        return
    run_sweep(expanded, profile, directory, shlex.join(["ray-l4", *sys.argv[1:]]), Console())


def _default_path(sweep: Sweep, overlays: list[Path]) -> Path:
    """The same for the same sweep, so that a second call finds what the first one did."""
    scale = [] if sweep.scale == 1 else [f"x{sweep.scale:g}"]
    return Path("runs") / "-".join([sweep.name, *(overlay.stem for overlay in overlays), *scale])


def _grid_values(text: str) -> tuple[str, list[object]]:
    key, equals, source = text.partition("=")
    if not equals or not key.strip() or not source.strip():
        raise ConfigError(f"--grid {text}: expected KEY=V1,V2 (distillation.weight=0,0.2,1)")
    values, _ = parse(f"[{source}]", f"--grid {key}")
    assert isinstance(values, list)
    return key.strip(), values


def _orders(text: str) -> Orders:
    return "all" if text.strip() == "all" else [order.split(":") for order in _listed(text, "--orders")]


def _seeds(text: str) -> int | list[int]:
    try:
        numbers = [int(part) for part in _listed(text.strip().removesuffix(","), "--seeds")]
    except ValueError:
        raise ConfigError(f"--seeds {text}: expected how many (3), or which ones (0,7,12)") from None
    if "," in text:
        return numbers
    if numbers[0] < 1:
        raise ConfigError(f"--seeds {text}: expected at least one")
    return numbers[0]


def _listed(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{option} {text}: expected names with commas between them")
    return parts
