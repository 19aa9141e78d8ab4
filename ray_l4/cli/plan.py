"""``plan``: predict the memory of every device before anything is started, and the profile that has enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.options import ClusterOption, SetOption, WithOption, split_overrides
from ray_l4.cli.plan_rows import largest_row, print_json, print_tables

if TYPE_CHECKING:
    from rich.console import Console

    from ray_l4.config.cluster import ClusterConfig
    from ray_l4.config.experiment import ExperimentConfig
    from ray_l4.planning.data_lengths import DataLengths
    from ray_l4.planning.plan import Plan, PlanRequest
    from ray_l4.planning.requirements import Estimator

ExperimentArgument = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to learn; of a protocol, every row of its table.")
]
DeviceMemoryOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory of every device, such as 16GiB; this machine's if not given."),
]
TokensOption = Annotated[
    int | None,
    typer.Option(min=4, help="Length of an example in tokens; that of the longest in the data if not given."),
]
AnswerOption = Annotated[
    int | None,
    typer.Option(min=1, help="Length of an answer in tokens; that of the longest in the data if not given."),
]
RunDirOption = Annotated[
    Path | None, typer.Option(help="Where the run directory will be, for the free disk space; runs/ if not given.")
]

_DOES_NOT_FIT = 1
_READ = {"method", "stream", "data", "model", "peers", "replay", "evaluation"}
"""Groups of settings on which the lengths of the data depend."""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(plan)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Show what is being done: in one changing line on a terminal, in a line for each step elsewhere."""
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    with console.status("planning") as status:
        yield lambda line: status.update(line)


def _lengths(rows: Iterable[ExperimentConfig], tell: Callable[[str], None]) -> list[DataLengths | None]:
    """Return the lengths of every row's data; None, with a line that says why, where it cannot be read here."""
    found: dict[str, DataLengths | None] = {}
    keys = []
    for config in rows:
        keys.append(config.model_dump_json(include=_READ))
        if keys[-1] not in found:
            found[keys[-1]] = _read_lengths(config, tell)
    return [found[key] for key in keys]


def _read_lengths(config: ExperimentConfig, tell: Callable[[str], None]) -> DataLengths | None:
    from ray_l4.errors import RayL4Error
    from ray_l4.planning.data_lengths import read_lengths

    tell("reading and tokenising the data for its lengths (--tokens N does without)")
    try:
        return read_lengths(config)
    except RayL4Error as error:
        typer.echo(
            f"the longest sequence that the model allows is assumed, since no data can be read: {error}", err=True
        )
        return None


def plan(
    experiment: ExperimentArgument,
    with_: WithOption = None,
    cluster: ClusterOption = None,
    set_: SetOption = None,
    device_memory: DeviceMemoryOption = None,
    tokens: TokensOption = None,
    answer: AnswerOption = None,
    run_dir: RunDirOption = None,
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

    from ray_l4.planning.disk import free_space
    from ray_l4.planning.plan import PlanRequest, advise
    from ray_l4.planning.requirements import Estimator
    from ray_l4.planning.units import parse_size

    size = None if device_memory is None else parse_size(device_memory, "--device-memory")
    with _progress(Console(stderr=True)) as tell:
        lengths = _lengths(rows.values(), tell) if tokens is None else [None] * len(rows)
        # For another machine's devices, this one's disk says nothing, unless it is named.
        free = None if size is not None and run_dir is None else free_space(run_dir or Path("runs"))
        requests = {
            label: PlanRequest(config, size, tokens, answer, data, free)
            for (label, config), data in zip(rows.items(), lengths, strict=True)
        }
        estimator = Estimator(lambda line: tell(f"simulating {line}"))
        plans = _made(requests, profile, estimator, tell)
        row = largest_row(plans)
        fits = plans[row].fits
        advice = None if fits else advise(requests[row], profile, _other_profiles(cluster), estimator)
    if as_json:
        print_json(plans, row, advice)
    else:
        print_tables(plans, row, advice, str(experiment))
    if not fits:
        raise typer.Exit(_DOES_NOT_FIT)


def _made(
    requests: Mapping[str, PlanRequest], profile: ClusterConfig, estimator: Estimator, tell: Callable[[str], None]
) -> dict[str, Plan]:
    """Plan every row of the table."""
    from ray_l4.planning.plan import make_plan

    plans = {}
    for number, (label, request) in enumerate(requests.items(), start=1):
        if len(requests) > 1:
            tell(f"{label} ({number} of {len(requests)} rows)")
        plans[label] = make_plan(request, profile, estimator)
    return plans


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
