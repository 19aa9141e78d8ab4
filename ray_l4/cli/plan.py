"""``plan``: predict the memory of every device before anything is started, and the profile that has enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.options import ClusterOption, SetOption, split_overrides

if TYPE_CHECKING:
    from rich.console import Console

    from ray_l4.config.experiment import ExperimentConfig
    from ray_l4.planning.data_lengths import DataLengths

_DOES_NOT_FIT = 1
_PROFILES = Path("cluster_configs")
"""Folder of the profiles to suggest, unless ``--cluster`` names one of another folder."""


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


def _lengths(config: ExperimentConfig, tell: Callable[[str], None]) -> DataLengths | None:
    """Return the lengths of the data; None, with a line that says why, if it cannot be read here."""
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
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What to learn.")],
    cluster: ClusterOption = None,
    set_: SetOption = None,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of every device, such as 16GiB; this machine's if not given."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=4, help="Length of an example in tokens; that of the longest in the data if not given."),
    ] = None,
    answer: Annotated[
        int | None,
        typer.Option(min=1, help="Length of an answer in tokens; that of the longest in the data if not given."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run directory will be, for the free disk space; runs/ if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with sizes in bytes.")] = False,
) -> None:
    """Predict the memory, the exchanged bytes and the placement of a run.

    Exits with 1, and names what would fit, if this profile does not.
    """
    from ray_l4.config.loading import load_cluster, load_experiment

    for_experiment, for_cluster = split_overrides(set_)
    config = load_experiment(experiment, for_experiment)
    profile = load_cluster(cluster, for_cluster)

    from rich.console import Console

    from ray_l4.methods import resolved
    from ray_l4.planning import view
    from ray_l4.planning.disk import free_space
    from ray_l4.planning.plan import PlanRequest, advise, make_plan
    from ray_l4.planning.requirements import Estimator
    from ray_l4.planning.units import parse_size

    size = None if device_memory is None else parse_size(device_memory, "--device-memory")
    with _progress(Console(stderr=True)) as tell:
        config = resolved(config)
        data = _lengths(config, tell) if tokens is None else None
        # For another machine's devices, this one's disk says nothing, unless it is named.
        free = None if size is not None and run_dir is None else free_space(run_dir or Path("runs"))
        request = PlanRequest(config, size, tokens, answer, data, free)
        estimator = Estimator(lambda line: tell(f"simulating {line}"))
        made = make_plan(request, profile, estimator)
        folder = cluster.parent if cluster else _PROFILES
        others = {str(path): load_cluster(path) for path in sorted(folder.glob("*.yaml")) if path != cluster}
        advice = None if made.fits else advise(request, profile, others, estimator)
    if as_json:
        import json

        typer.echo(json.dumps(view.as_json(made, advice)))
    else:
        console = Console(highlight=False)
        for part in view.tables(made, advice, str(experiment)):
            console.print(part)
    if not made.fits:
        raise typer.Exit(_DOES_NOT_FIT)
