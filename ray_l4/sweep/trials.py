"""Expansion of a protocol into trials: one experiment for each combination of variant, grid point, order and seed."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.protocol import NO_REFERENCE, Change, Protocol, Settings, check_grid, load_protocol, option
from ray_l4.errors import ConfigError, nearest
from ray_l4.methods import METHODS, get_method, resolved
from ray_l4.store.names import folder_name
from ray_l4.sweep.scaling import check_scale, scaled, scaled_settings
from ray_l4.tasks.registry import metric_of

Orders = Literal["all"] | Sequence[Sequence[str]]

MAX_TRIALS = 200
"""Default limit: above the largest protocol of the papers, and low enough to catch a typing mistake."""

_MAX_NAME = 200
"""Longest trial name in bytes; file systems allow 255."""
_MAX_ORDER = 120
"""Bytes of it for the order of the tasks, which a digest shortens if need be."""


@dataclass(frozen=True)
class SweepRequest:
    """The command line's changes to a protocol, and its replacements for what the protocol varies."""

    overrides: Sequence[str] = ()
    """``key=value`` texts; they take precedence over the file and the scale, but not over a variant's own settings."""
    overlays: Sequence[Path] = ()
    """Files whose values replace those of the protocol, in this order."""
    scale: float = 1.0
    methods: Sequence[str] | None = None
    """Labels of the protocol's variants, or names of methods."""
    grid: Mapping[str, Sequence[object]] = field(default_factory=dict)
    """Additional keys to vary, or replacement values for keys of the protocol's grid. Not scaled."""
    orders: Orders | None = None
    seeds: int | Sequence[int] | None = None
    max_trials: int = MAX_TRIALS
    against: str | None = None
    """The row to compare the others with, or ``NO_REFERENCE``; None for that of the protocol."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Unique in the sweep; also the name of the trial's run directory inside the sweep directory."""
    experiment: ExperimentConfig
    settings: Settings
    """The changes that the trial's variant and grid point make to the protocol."""

    @property
    def stream(self) -> list[str]:
        """Names of the tasks, in the order of this trial."""
        return [task.name for task in self.experiment.stream]


@dataclass(frozen=True)
class Sweep:
    """All trials of a protocol, in the order in which they are started."""

    name: str
    title: str
    """Title of the table; names the scale if it is not 1."""
    table: str | None
    """Key of the published table that the trials reproduce (``l4-table2``)."""
    scale: float
    trials: tuple[Trial, ...]
    against: str | None = None
    """Label of the row that all others are compared with, run by run."""


@dataclass(frozen=True)
class _Configuration:
    """A variant at one point of the grid: a row of the table."""

    label: str
    experiment: ExperimentConfig
    settings: Settings

    @property
    def depends_on_order(self) -> bool:
        """True if the method learns one task after another. Otherwise one order stands for all."""
        return get_method(self.experiment.method).kind.ordered


def expand_protocol(path: Path, request: SweepRequest) -> Sweep:
    """Return all trials of the protocol at ``path``. Raises ConfigError if the protocol or the request is invalid."""
    check_scale(request.scale)
    rescale = partial(scaled, scale=request.scale) if request.scale != 1 else None
    protocol = load_protocol(path, request.overrides, request.overlays, rescale)
    orders = _orders(protocol, request.orders)
    seeds = _seeds(protocol, request.seeds)
    configurations = _configurations(protocol, request)
    _check_number_of_trials(configurations, orders, seeds, protocol, request.max_trials)
    permuted = list(itertools.permutations(_task_names(protocol.base))) if orders == "all" else orders
    trials = [
        _trial(configuration, order, seed)
        for seed in seeds
        for number, order in enumerate(permuted)
        for configuration in configurations
        if configuration.depends_on_order or number == 0
    ]
    _check_trial_names(trials)
    return Sweep(
        name=protocol.base.name,
        title=_title(protocol, request.scale),
        table=protocol.sweep.table,
        scale=request.scale,
        trials=tuple(trials),
        against=_against(protocol, request),
    )


def _title(protocol: Protocol, scale: float) -> str:
    return protocol.title + (f", scaled to {scale:g} of its examples and epochs" if scale != 1 else "")


def _task_names(experiment: ExperimentConfig) -> list[str]:
    return [task.name for task in experiment.stream]


def _configurations(protocol: Protocol, request: SweepRequest) -> list[_Configuration]:
    variants, grid = _variants(protocol, request), _grid(protocol, request)
    count = len(variants) * math.prod(map(len, grid.values()))
    if count > request.max_trials:
        raise ConfigError(
            f"the grid has {count} points, more than the limit of {request.max_trials} trials; see --max-trials"
        )
    points = list(itertools.product(*grid.values()))
    return [_configuration(protocol, label, changes, point) for label, changes in variants.items() for point in points]


def _variants(protocol: Protocol, request: SweepRequest) -> dict[str, list[Change]]:
    """Return the changes of each selected variant, by its label."""
    known = protocol.sweep.variants
    selected = list(request.methods) if request.methods is not None else list(known or [protocol.base.method])
    repeated = next((name for index, name in enumerate(selected) if name in selected[:index]), None)
    if repeated is not None:
        raise ConfigError(f"--methods: {repeated!r} is listed twice")
    return {label: _variant(protocol, label, request.scale) for label in selected}


def _variant(protocol: Protocol, label: str, scale: float) -> list[Change]:
    known = protocol.sweep.variants
    if label in known:
        settings = scaled_settings(known[label], scale)
        return [Change(key, value, protocol.origin("variants", label, key)) for key, value in settings.items()]
    if label not in METHODS:
        raise ConfigError(f"unknown method or variant {label!r}. {nearest(label, {*METHODS, *known})}")
    return [Change("method", label, option("--methods"))]


def _grid(protocol: Protocol, request: SweepRequest) -> dict[str, list[Change]]:
    """Return the values of each grid key as changes; the command line's values replace the protocol's."""
    try:
        check_grid(dict(request.grid))
    except ValueError as error:
        raise ConfigError(f"--grid: {error}") from None
    given = {key: [Change(key, value, option("--grid")) for value in values] for key, values in request.grid.items()}
    return {key: _protocol_values(protocol, key, request.scale) for key in protocol.sweep.grid} | given


def _protocol_values(protocol: Protocol, key: str, scale: float) -> list[Change]:
    origin = protocol.origin("grid", key)
    values = [scaled_settings({key: value}, scale)[key] for value in protocol.sweep.grid[key]]
    return [Change(key, value, origin) for value in values]


def _against(protocol: Protocol, request: SweepRequest) -> str | None:
    """Return the row to compare with, which ``--methods`` may leave out: an earlier call may have run it.

    Raises ConfigError if there is no such row.
    """
    against = protocol.sweep.against if request.against is None else request.against
    if against in (None, NO_REFERENCE):
        return None
    labels = [*(protocol.sweep.variants or [protocol.base.method]), *(request.methods or ())]
    points = list(itertools.product(*_grid(protocol, request).values()))
    rows = {_row_label(label, point) for label in labels for point in points}
    if against in rows:
        return against
    where = f"{protocol.origin('against').name}: against" if request.against is None else "--against"
    raise ConfigError(f"{where}: the protocol has no row {against!r}. {nearest(str(against), rows)}")


def _configuration(
    protocol: Protocol, label: str, changes: Sequence[Change], point: Sequence[Change]
) -> _Configuration:
    experiment = protocol.experiment([*changes, *point])
    for task in experiment.stream:
        metric_of(task)  # raises ConfigError for an unknown task
    settings = {change.key: change.value for change in (*changes, *point)}
    return _Configuration(_row_label(label, point), experiment, settings)


def _row_label(label: str, point: Sequence[Change]) -> str:
    """Return the label of a variant at a point of the grid."""
    return label + (f" ({', '.join(f'{change.key}={_text(change.value)}' for change in point)})" if point else "")


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _orders(protocol: Protocol, requested: Orders | None) -> Orders:
    orders = protocol.sweep.orders if requested is None else requested
    names = _task_names(protocol.base)
    if orders and len(set(names)) < len(names):
        where = protocol.origin("orders").name if requested is None else "--orders"
        raise ConfigError(f"{where}: a task of the stream comes back, so its order is fixed. Leave the orders out.")
    if orders == "all":
        return orders
    for order in orders or ():
        _check_order(order, names, protocol.origin("orders").name if requested is None else "--orders")
    return orders or [names]


def _check_order(order: Sequence[str], names: Sequence[str], origin: str) -> None:
    prefix = f"{origin}: order {':'.join(order)}"
    for index, name in enumerate(order):
        if name not in names:
            raise ConfigError(f"{prefix}: task {name!r} is not in the stream. {nearest(name, names)}")
        if name in order[:index]:
            raise ConfigError(f"{prefix}: task {name!r} is listed twice")
    missing = [name for name in names if name not in order]
    if missing:
        raise ConfigError(f"{prefix}: {', '.join(missing)} is missing; an order lists every task of the stream once")


def _seeds(protocol: Protocol, requested: int | Sequence[int] | None) -> Sequence[int]:
    seeds, first = protocol.sweep.seeds if requested is None else requested, protocol.base.seed
    return range(first, first + seeds) if isinstance(seeds, int) else list(seeds)


def _check_number_of_trials(
    configurations: Sequence[_Configuration], orders: Orders, seeds: Sequence[int], protocol: Protocol, limit: int
) -> None:
    num_orders = math.factorial(len(protocol.base.stream)) if orders == "all" else len(orders)
    num_ordered = sum(configuration.depends_on_order for configuration in configurations)
    count = (num_ordered * num_orders + len(configurations) - num_ordered) * len(seeds)
    if count > limit:
        raise ConfigError(
            f"{count} trials exceed the limit of {limit} (rows: {len(configurations)}, orders of "
            f"{len(protocol.base.stream)} tasks: {num_orders}, seeds: {len(seeds)}). Request fewer, or allow them with "
            f"--max-trials {count}."
        )


def _trial(configuration: _Configuration, order: Sequence[str], seed: int) -> Trial:
    stream = configuration.experiment.stream
    if list(order) != [item.name for item in stream]:
        stream = sorted(stream, key=lambda item: order.index(item.name))
    changes = {"stream": stream, "seed": seed, "variant": configuration.label}
    experiment = resolved(configuration.experiment.model_copy(update=changes))
    parts = (configuration.label, folder_name("-".join(map(_slug, order)), _MAX_ORDER), f"s{seed}")
    return Trial("_".join(map(_slug, parts)), experiment, configuration.settings)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-.")


def _check_trial_names(trials: Sequence[Trial]) -> None:
    """Raise ConfigError if a name is too long, or if two labels differ only in characters that a name cannot hold."""
    labels: dict[str, str] = {}
    for trial in trials:
        label = str(trial.experiment.variant)
        if len(trial.name.encode()) > _MAX_NAME:
            raise ConfigError(f"{trial.name} is too long for a directory name; give variant {label!r} a shorter label")
        if trial.name in labels:
            raise ConfigError(
                f"variants {labels[trial.name]!r} and {label!r} would share the run directory {trial.name}; rename one"
            )
        labels[trial.name] = label
