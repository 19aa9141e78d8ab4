"""A protocol: an experiment file with one more key, ``sweep``, that says which runs make up a table or a figure.

Values come from several places. Later ones win: the file, files laid over it, what the caller rescales, ``--set``, a
variant's settings, a point of the grid. A message about a value names the place it came from, and a relative path
starts there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ray_l4.config.document import Document, read_document
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.fields import Count, Strict
from ray_l4.config.loading import (
    SWEEP_KEY,
    apply_overrides,
    check,
    expand_task_names,
    experiment_of,
    resolve_paths,
)
from ray_l4.config.problems import dotted
from ray_l4.config.strict_yaml import Location
from ray_l4.errors import ConfigError

Settings = Mapping[str, object]
"""Dotted keys of the experiment (``training.epochs``), and their values."""

_OWNED = {"seed": "seeds", "variant": "variants", "stream": "orders"}
"""Keys of the experiment that a sweep sets itself, and the key of the sweep that says how."""


def _named_settings(value: object) -> object:
    """``[lamol, l4]`` is short for ``{lamol: {method: lamol}, l4: {method: l4}}``."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        _refuse_repeated(value)
        value = {name: {"method": name} for name in value}
    if not isinstance(value, dict) or not all(isinstance(settings, dict) for settings in value.values()):
        raise ValueError("expected names of methods, or labels with keys and values (label: {training.epochs: 27})")
    for settings in value.values():
        _refuse_owned(settings)
    return value


def check_grid(value: object) -> object:
    """The same value. Raises ValueError unless it is a mapping from keys that a grid may hold to distinct values."""
    if not isinstance(value, dict) or not all(isinstance(values, list) and values for values in value.values()):
        raise ValueError("expected keys of the experiment, each with a list of values (training.epochs: [3, 9])")
    _refuse_owned(value)
    for key, values in value.items():
        _refuse_repeated(values, f"{key}: ")
    return value


def _refuse_owned(settings: Iterable[str]) -> None:
    for key in settings:
        if key in _OWNED:
            raise ValueError(f"{key}: is set by the sweep itself; use {SWEEP_KEY}.{_OWNED[key]} or --{_OWNED[key]}")


def _refuse_repeated(values: Sequence[object], where: str = "") -> None:
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise ValueError(f"{where}{twice!r} stands twice")


class SweepConfig(Strict):
    """What a protocol varies: its trials are all combinations of variants, grid, orders and seeds."""

    title: Annotated[str, Field(min_length=1)] | None = None
    """Stands over every table that is printed; the experiment's name when not given."""
    table: str | None = None
    """Key of the published table or figure that these runs belong to (``l4-table2``)."""
    variants: Annotated[dict[str, dict[str, Any]], BeforeValidator(_named_settings)] = Field(default_factory=dict)
    """Rows of the table: a label and what it changes. A list of methods is short for a row each. The experiment's own
    method when not given."""
    orders: Literal["all"] | list[list[str]] | None = None
    """Orders of the tasks: lists of their names, or all permutations; the stream's own when not given."""
    grid: Annotated[dict[str, list[Any]], BeforeValidator(check_grid)] = Field(default_factory=dict)
    """Keys that every variant is tried with, and their values; all combinations."""
    seeds: Count | Annotated[list[int], Field(min_length=1)] = 1
    """How many seeds, counted from the experiment's own, or a list of them."""

    @model_validator(mode="after")
    def _nothing_twice(self) -> SweepConfig:
        for name, values in (("orders", self.orders), ("seeds", self.seeds)):
            if isinstance(values, list):
                _refuse_repeated(values, f"{name}: ")
        return self


@dataclass(frozen=True)
class Origin:
    """Where a value comes from."""

    name: str
    """A file and line, or an option: for a message."""
    folder: Path
    """Relative paths start here."""


def option(name: str) -> Origin:
    """The origin of what an option of the command line says."""
    return Origin(name, Path.cwd())


@dataclass(frozen=True)
class Change:
    """Another value for one key of an experiment."""

    key: str
    value: object
    origin: Origin


@dataclass(frozen=True)
class _Layers(Document):
    """A document that other files and changes were laid over, and that knows which value came from where."""

    origins: dict[Location, Origin] = field(default_factory=dict)
    """Of all that does not come from the document itself."""

    def where(self, location: Location) -> str:
        nearest = self._nearest(location)
        place = super().where(location) if nearest is None else self.origins[nearest].name
        inside = [key for key in self.origins if location and key != nearest and key[: len(location)] == location]
        if nearest is None:
            inside = [key for key in inside if key not in self.overridden]  # named already
        others = {self.origins[key].name: None for key in inside if self.origins[key].name != place}
        return place + (f" with {', '.join(others)}" if others else "")

    def base_of(self, location: Location) -> Path:
        nearest = self._nearest(location)
        return self.folder if nearest is None else self.origins[nearest].folder

    def _nearest(self, location: Location) -> Location | None:
        """The value at ``location``, or the closest one around it, of which an origin is known."""
        return max((key for key in self.origins if location[: len(key)] == key), key=len, default=None)

    def lay(self, key: Location, value: object, origin: Origin) -> None:
        """Put one value in place. Raises ConfigError if it has no place to go."""
        known = len(self.made)
        try:
            location = self.set(key, copy.deepcopy(value))
        except ConfigError as error:
            raise ConfigError(f"{origin.name}: {dotted(key)}: {error}") from None
        self.credit([*self.made[known:], location], origin)
        del self.made[known:]  # no override made them

    def credit(self, locations: Iterable[Location], origin: Origin) -> None:
        """Note where that which stands there now comes from, in place of what stood there before."""
        for location in locations:
            for replaced in [key for key in self.origins if key[: len(location)] == location]:
                del self.origins[replaced]
            self.origins[location] = origin

    def branch(self) -> _Layers:
        """A copy that can be changed without changing this one."""
        return replace(self, tree=copy.deepcopy(self.tree), made=list(self.made), origins=dict(self.origins))


@dataclass(frozen=True)
class Protocol:
    """An experiment, and what a sweep varies of it."""

    base: ExperimentConfig
    sweep: SweepConfig
    _layers: _Layers

    @property
    def title(self) -> str:
        """What stands over its tables."""
        return self.sweep.title or self.base.name

    def origin(self, *keys: str) -> Origin:
        """Where a value of the sweep comes from."""
        location = (SWEEP_KEY, *keys)
        return Origin(self._layers.where(location), self._layers.base_of(location))

    def experiment(self, changes: Iterable[Change]) -> ExperimentConfig:
        """The experiment with other values. Raises ConfigError, one line for each problem, with the change's origin."""
        layers = self._layers.branch()
        for change in changes:
            layers.lay(tuple(change.key.split(".")), change.value, change.origin)
        return experiment_of(layers)


def load_protocol(
    path: str | Path,
    overrides: Sequence[str] = (),
    laid_over: Sequence[str | Path] = (),
    rescale: Callable[[ExperimentConfig], Settings] | None = None,
) -> Protocol:
    """The protocol of a YAML file, or an experiment file without a ``sweep``, which is a protocol of one run.

    ``laid_over``: partial files of the same form, whose values replace those of ``path``. ``rescale`` is shown the
    experiment before ``overrides`` (``training.epochs=3``) and gives values that they may still replace.
    Raises ConfigError, one line for each problem.
    """
    document = read_document(Path(path))
    layers = _Layers(document.label, document.folder, document.tree, document.root)
    for overlay in map(Path, laid_over):
        _lay_over(layers, read_document(overlay))
    sweep_tree = layers.tree.pop(SWEEP_KEY, {})
    if rescale is not None:
        expand_task_names(layers)
        for key, value in rescale(experiment_of(layers.branch())).items():
            layers.lay(tuple(key.split(".")), value, option("--scale"))
    apply_overrides(layers, overrides)
    layers.credit([*layers.made, *layers.overridden], option("--set"))
    base = experiment_of(layers)
    whole = replace(layers, tree={SWEEP_KEY: sweep_tree})
    return Protocol(base, check(_SweepFile, whole).sweep, layers)


class _SweepFile(Strict):
    """The part of a protocol file that is no experiment."""

    sweep: SweepConfig
    """What varies."""


def _lay_over(layers: _Layers, overlay: Document) -> None:
    """Mappings are merged; everything else, lists included, is replaced."""
    resolve_paths(overlay)
    for location, value in _leaves(overlay.tree):
        layers.lay(location, value, Origin(overlay.where(location), overlay.folder))


def _leaves(tree: Mapping[str, object], at: Location = ()) -> Iterator[tuple[Location, object]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key), value
