"""From a protocol to its trials: every combination of variant, grid point, order and seed as one experiment."""

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
from ray_l4.config.protocol import Change, Protocol, Settings, check_grid, load_protocol, option
from ray_l4.errors import ConfigError, nearest
from ray_l4.methods import METHODS, get_method, resolved
from ray_l4.sweep.scaling import check_scale, scaled, scaled_settings
from ray_l4.tasks.registry import metric_of

Orders = Literal["all"] | Sequence[Sequence[str]]

MAX_TRIALS = 200
"""More than the largest protocol of the papers has, and fewer than a slip of the finger asks for."""

_MAX_NAME = 200
"""Characters of a folder's name; file systems take 255."""


@dataclass(frozen=True)
class Request:
    """What the command line says: changes of the protocol, and what to use in place of what it varies."""

    overrides: Sequence[str] = ()
    """``key=value`` texts; they win over the file and over the scale, not over a variant's own settings."""
    laid_over: Sequence[Path] = ()
    scale: float = 1.0
    methods: Sequence[str] | None = None
    """Labels of the protocol's variants, or names of methods."""
    grid: Mapping[str, Sequence[object]] = field(default_factory=dict)
    """More keys to vary, or other values for those of the protocol. Not scaled."""
    orders: Orders | None = None
    seeds: int | Sequence[int] | None = None
    max_trials: int = MAX_TRIALS


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    folder: str
    """Its run directory, relative to the sweep's folder."""
    experiment: ExperimentConfig
    settings: Settings
    """What its variant and its point of the grid change."""

    @property
    def stream(self) -> list[str]:
        """Names of the tasks, in the order of this trial."""
        return [task.name for task in self.experiment.stream]


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep, in the order in which they are started."""

    name: str
    title: str
    """With the scale, if it is not 1."""
    table: str | None
    scale: float
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class _Row:
    """A variant at one point of the grid."""

    label: str
    experiment: ExperimentConfig
    settings: Settings

    @property
    def ordered(self) -> bool:
        """Whether it learns one task after another. Else the order makes no difference, and one run stands for all."""
        return get_method(self.experiment.method).stages == "stream"


def make_plan(path: Path, request: Request) -> Plan:
    """All trials of the protocol at ``path``. Raises ConfigError, before anything is started, for whatever is wrong."""
    check_scale(request.scale)
    rescale = partial(scaled, scale=request.scale) if request.scale != 1 else None
    protocol = load_protocol(path, request.overrides, request.laid_over, rescale)
    orders = _orders(protocol, request.orders)
    seeds = _seeds(protocol, request.seeds)
    rows = _rows(protocol, request)
    _refuse_too_many(rows, orders, seeds, protocol, request.max_trials)
    permuted = list(itertools.permutations(_names(protocol.base))) if orders == "all" else orders
    trials = [
        _trial(row, order, seed)
        for seed in seeds
        for number, order in enumerate(permuted)
        for row in rows
        if row.ordered or number == 0
    ]
    _refuse_equal_folders(trials)
    return Plan(protocol.base.name, _title(protocol, request.scale), protocol.sweep.table, request.scale, tuple(trials))


def _title(protocol: Protocol, scale: float) -> str:
    return protocol.title + (f", scaled to {scale:g} of its examples and epochs" if scale != 1 else "")


def _names(experiment: ExperimentConfig) -> list[str]:
    return [task.name for task in experiment.stream]


def _rows(protocol: Protocol, request: Request) -> list[_Row]:
    variants, grid = _variants(protocol, request), _grid(protocol, request)
    count = len(variants) * math.prod(map(len, grid.values()))
    if count > request.max_trials:
        raise ConfigError(f"the grid has {count} points, more than {request.max_trials} trials; see --max-trials")
    points = list(itertools.product(*grid.values()))
    return [_row(protocol, label, changes, point) for label, changes in variants.items() for point in points]


def _variants(protocol: Protocol, request: Request) -> dict[str, list[Change]]:
    """Label -> what it changes."""
    known = protocol.sweep.variants
    chosen = list(request.methods) if request.methods is not None else list(known or [protocol.base.method])
    twice = next((name for index, name in enumerate(chosen) if name in chosen[:index]), None)
    if twice is not None:
        raise ConfigError(f"--methods: {twice!r} stands twice")
    return {label: _variant(protocol, label, request.scale) for label in chosen}


def _variant(protocol: Protocol, label: str, scale: float) -> list[Change]:
    known = protocol.sweep.variants
    if label in known:
        settings = scaled_settings(known[label], scale)
        return [Change(key, value, protocol.origin("variants", label, key)) for key, value in settings.items()]
    if label not in METHODS:
        raise ConfigError(f"unknown method or variant {label!r}. {nearest(label, {*METHODS, *known})}")
    return [Change("method", label, option("--methods"))]


def _grid(protocol: Protocol, request: Request) -> dict[str, list[Change]]:
    """Key -> its values as changes; what the command line says of a key replaces what the protocol says."""
    try:
        check_grid(dict(request.grid))
    except ValueError as error:
        raise ConfigError(f"--grid: {error}") from None
    asked = {key: [Change(key, value, option("--grid")) for value in values] for key, values in request.grid.items()}
    return {key: _written(protocol, key, request.scale) for key in protocol.sweep.grid} | asked


def _written(protocol: Protocol, key: str, scale: float) -> list[Change]:
    origin = protocol.origin("grid", key)
    values = [scaled_settings({key: value}, scale)[key] for value in protocol.sweep.grid[key]]
    return [Change(key, value, origin) for value in values]


def _row(protocol: Protocol, label: str, changes: Sequence[Change], point: Sequence[Change]) -> _Row:
    experiment = protocol.experiment([*changes, *point])
    for task in experiment.stream:
        metric_of(task)  # raises for an unknown task
    if point:
        label += f" ({', '.join(f'{change.key}={_text(change.value)}' for change in point)})"
    return _Row(label, experiment, {change.key: change.value for change in (*changes, *point)})


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _orders(protocol: Protocol, asked: Orders | None) -> Orders:
    orders = protocol.sweep.orders if asked is None else asked
    names = _names(protocol.base)
    if orders == "all":
        return orders
    for order in orders or ():
        _check_order(order, names, protocol.origin("orders").name if asked is None else "--orders")
    return orders or [names]


def _check_order(order: Sequence[str], names: Sequence[str], origin: str) -> None:
    place = f"{origin}: order {':'.join(order)}"
    for index, name in enumerate(order):
        if name not in names:
            raise ConfigError(f"{place}: task {name!r} is not in the stream. {nearest(name, names)}")
        if name in order[:index]:
            raise ConfigError(f"{place}: task {name!r} stands twice")
    left_out = [name for name in names if name not in order]
    if left_out:
        raise ConfigError(f"{place}: leaves out {', '.join(left_out)}; an order names every task of the stream once")


def _seeds(protocol: Protocol, asked: int | Sequence[int] | None) -> list[int]:
    seeds = protocol.sweep.seeds if asked is None else asked
    return [protocol.base.seed + index for index in range(seeds)] if isinstance(seeds, int) else list(seeds)


def _refuse_too_many(
    rows: Sequence[_Row], orders: Orders, seeds: Sequence[int], protocol: Protocol, limit: int
) -> None:
    num_orders = math.factorial(len(protocol.base.stream)) if orders == "all" else len(orders)
    ordered = sum(row.ordered for row in rows)
    count = (ordered * num_orders + len(rows) - ordered) * len(seeds)
    if count > limit:
        raise ConfigError(
            f"{count} trials ({len(rows)} rows, {num_orders} orders of {len(protocol.base.stream)} tasks, {len(seeds)} "
            f"seeds) are more than {limit}. Ask for fewer, or allow them with --max-trials {count}."
        )


def _trial(row: _Row, order: Sequence[str], seed: int) -> Trial:
    stream = sorted(row.experiment.stream, key=lambda task: order.index(task.name))
    changes = {"stream": stream, "seed": seed, "variant": row.label}
    experiment = resolved(row.experiment.model_copy(update=changes))
    parts = (row.label, "-".join(map(_slug, order)), f"s{seed}")
    return Trial("_".join(map(_slug, parts)), experiment, row.settings)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-.")


def _refuse_equal_folders(trials: Sequence[Trial]) -> None:
    """Names are made for people; two that differ only in what a file name cannot hold would be one run directory."""
    labels: dict[str, str] = {}
    for trial in trials:
        label = str(trial.experiment.variant)
        if len(trial.folder) > _MAX_NAME:
            raise ConfigError(f"the name {trial.folder} is too long for a folder; give variant {label!r} a shorter one")
        if trial.folder in labels:
            raise ConfigError(
                f"variants {labels[trial.folder]!r} and {label!r} would share the folder {trial.folder}; rename one"
            )
        labels[trial.folder] = label
