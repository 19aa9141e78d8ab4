"""``sweep``: all trials of a protocol, and their table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.options import ClusterOption, SetOption, WithOption, split_list, split_overrides
from ray_l4.config.redaction import redacted_command
from ray_l4.errors import ConfigError

if TYPE_CHECKING:
    from ray_l4.config.cluster import ClusterConfig
    from ray_l4.sweep.directory import SweepDirectory
    from ray_l4.sweep.trials import Orders, Sweep

ProtocolArgument = Annotated[
    Path, typer.Argument(metavar="PROTOCOL.yaml", help="An experiment and the settings to vary.")
]
GridOption = Annotated[
    list[str] | None,
    typer.Option("--grid", metavar="KEY=V1,V2", help="Combine every variant with each of these values. Repeatable."),
]
OrdersOption = Annotated[
    str | None,
    typer.Option(metavar="all|LIST", help="Task orders: all, or a list such as woz.en:wikisql,wikisql:woz.en."),
]
SeedsOption = Annotated[
    str | None, typer.Option(metavar="N|LIST", help="Number of seeds, or a list of seeds (0,7; a single one as 7,).")
]
MethodsOption = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Run only these: variants of the protocol, or any methods (lamol,l4)."),
]
ScaleOption = Annotated[float, typer.Option(help="Fraction of the examples and epochs to use, above 0 and at most 1.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the sweep; runs/NAME if not given.")]
MaxTrialsOption = Annotated[int | None, typer.Option(min=1, help="Refuse more trials than this; 200 if not given.")]

AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="ROW|none", help="Compare all other rows with this one, run by run; sweep.against if not given."
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(sweep)


def sweep(
    protocol: ProtocolArgument,
    grid: GridOption = None,
    orders: OrdersOption = None,
    seeds: SeedsOption = None,
    methods: MethodsOption = None,
    scale: ScaleOption = 1.0,
    with_: WithOption = None,
    set_: SetOption = None,
    cluster: ClusterOption = None,
    out: OutOption = None,
    max_trials: MaxTrialsOption = None,
    against: AgainstOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials, then stop.")] = False,
) -> None:
    """Run every trial of a protocol that is not done yet, and print the table of all."""
    from ray_l4.config.loading import load_cluster
    from ray_l4.sweep.trials import MAX_TRIALS, SweepRequest, expand_protocol

    for_experiment, for_cluster = split_overrides(set_)
    overlays = list(with_ or [])
    request = SweepRequest(
        overrides=for_experiment,
        overlays=overlays,
        scale=scale,
        methods=None if methods is None else split_list(methods, "--methods"),
        grid=dict(map(_grid_values, grid or [])),
        orders=None if orders is None else _orders(orders),
        seeds=None if seeds is None else _seeds(seeds),
        max_trials=max_trials or MAX_TRIALS,
        against=against,
    )
    expanded = expand_protocol(protocol, request)
    profile = load_cluster(cluster, for_cluster)

    from ray_l4.sweep.directory import SweepDirectory

    directory = SweepDirectory(out or _default_path(expanded, overlays))
    if dry_run:
        _print_trials(expanded, profile, directory)
        return

    from rich.console import Console

    from ray_l4.sweep.execute import run_sweep

    run_sweep(expanded, profile, directory, redacted_command(["ray-l4", *sys.argv[1:]]), Console())


def _print_trials(sweep: Sweep, profile: ClusterConfig, directory: SweepDirectory) -> None:
    """Print every trial, its state and what it reserves. Raises ClusterError if one does not fit on this machine."""
    from ray_l4.sweep.directory import describe_states
    from ray_l4.sweep.room_check import check_fit, trial_bundles

    states = directory.states(sweep)
    check_fit(sweep.trials, profile)
    for trial in sweep.trials:
        typer.echo(f"{states[trial.name]:<6} {trial.name}  reserves {trial_bundles(trial, profile)}")
    typer.echo(f"{sweep.title}: {describe_states(states.values())}, in {directory.path}")


def _default_path(sweep: Sweep, overlays: list[Path]) -> Path:
    """Return the same folder for the same sweep, so that a second call finds the trials of the first."""
    scale = [] if sweep.scale == 1 else [f"x{sweep.scale:g}"]
    return Path("runs") / "-".join([sweep.name, *(overlay.stem for overlay in overlays), *scale])


def _grid_values(text: str) -> tuple[str, list[object]]:
    """Parse one ``--grid``: a key and its YAML values. Raises ConfigError if it is malformed."""
    from ray_l4.config.strict_yaml import parse

    key, equals, source = text.partition("=")
    if not equals or not key.strip() or not source.strip():
        raise ConfigError(f"--grid {text}: expected KEY=V1,V2 (distillation.weight=0,0.2,1)")
    values, _ = parse(f"[{source}]", f"--grid {key}")
    assert isinstance(values, list)
    return key.strip(), values


def _orders(text: str) -> Orders:
    return "all" if text.strip() == "all" else [order.split(":") for order in split_list(text, "--orders")]


def _seeds(text: str) -> int | list[int]:
    """Parse ``--seeds``: a number of seeds, or a list of them. Raises ConfigError if it is malformed."""
    try:
        numbers = [int(part) for part in split_list(text.strip().removesuffix(","), "--seeds")]
    except ValueError:
        raise ConfigError(f"--seeds {text}: expected a number of seeds (3), or a list of them (0,7,12)") from None
    if "," in text:
        return numbers
    if numbers[0] < 1:
        raise ConfigError(f"--seeds {text}: expected at least one")
    return numbers[0]
