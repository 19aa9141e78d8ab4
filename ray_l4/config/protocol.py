"""Protocols: experiment files with a key ``sweep`` that lists the runs of a table or a figure.

A value can come from several sources. In order of increasing priority: the file, overlay files, rescaling by the
caller, ``--set``, the settings of a variant, the values of the grid. Messages name the source of a value, and relative
paths refer to the folder of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
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
    expand_task_names,
    experiment_of,
    refuse_protocol,
    resolve_paths,
    validate,
)
from ray_l4.config.problems import OVERRIDE, dotted
from ray_l4.config.strict_yaml import Location
from ray_l4.errors import ConfigError

Settings = Mapping[str, object]
"""Values by dotted key of the experiment (``training.epochs``)."""

NO_REFERENCE = "none"
"""In place of a row to compare with: no paired differences."""

_SET_BY_SWEEP = {"seed": "seeds", "variant": "variants", "stream": "orders"}
"""Keys of the experiment that the sweep sets, and the key of the sweep that controls each."""


def _named_settings(value: object) -> object:
    """Expand a list of methods: ``[lamol, l4]`` is short for ``{lamol: {method: lamol}, l4: {method: l4}}``."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        _check_distinct(value)
        value = {name: {"method": name} for name in value}
    if not isinstance(value, dict) or not all(isinstance(settings, dict) for settings in value.values()):
        raise ValueError("expected a list of methods, or labels with settings (label: {training.epochs: 27})")
    for settings in value.values():
        _check_keys(settings)
    return value


def check_grid(value: object) -> object:
    """Return ``value``. Raises ValueError unless it maps keys that a grid can vary to lists of distinct values."""
    if not isinstance(value, dict) or not all(isinstance(values, list) and values for values in value.values()):
        raise ValueError("expected keys of the experiment, each with a list of values (training.epochs: [3, 9])")
    _check_keys(value)
    for key, values in value.items():
        _check_distinct(values, f"{key}: ")
    return value


def _check_keys(keys: Iterable[str]) -> None:
    """Raise ValueError if one of ``keys`` is set by the sweep itself."""
    for key in keys:
        if key in _SET_BY_SWEEP:
            name = _SET_BY_SWEEP[key]
            raise ValueError(f"{key}: is set by the sweep itself; use {SWEEP_KEY}.{name} or --{name}")


def _check_distinct(values: Sequence[object], prefix: str = "") -> None:
    """Raise ValueError, with ``prefix`` before the message, if a value is repeated."""
    repeated = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if repeated is not None:
        raise ValueError(f"{prefix}{repeated!r} appears twice")


class SweepConfig(Strict):
    """Settings that vary between the trials of a protocol: all combinations of variants, orders, grid and seeds."""

    title: Annotated[str, Field(min_length=1)] | None = None
    """Title of the printed tables. If not given, the experiment's name."""
    table: str | None = None
    """Key of the published table or figure that the runs reproduce (``l4-table2``)."""
    variants: Annotated[dict[str, dict[str, Any]], BeforeValidator(_named_settings)] = Field(default_factory=dict)
    """Rows of the table: labels, each with the settings it changes. A list of methods is short for one row per method.
    If not given, one row with the experiment's method."""
    orders: Literal["all"] | list[list[str]] | None = None
    """Task orders: lists of task names, or ``all`` permutations. If not given, the order of the stream."""
    grid: Annotated[dict[str, list[Any]], BeforeValidator(check_grid)] = Field(default_factory=dict)
    """Keys of the experiment, each with a list of values. Every variant runs with all combinations."""
    seeds: Annotated[Count, Field(le=2**20)] | Annotated[list[int], Field(min_length=1)] = 1
    """Run seeds: a list, or how many, counting up from the experiment's seed."""
    against: str | None = None
    """The row that all others are compared with, run by run (``lamol``): tables then end with the paired differences to
    it. With a grid, the whole label of a row. ``none`` for no differences, as if not given."""

    @model_validator(mode="after")
    def _check_repetitions(self) -> SweepConfig:
        for name, values in (("orders", self.orders), ("seeds", self.seeds)):
            if isinstance(values, list):
                _check_distinct(values, f"{name}: ")
        return self


@dataclass(frozen=True)
class Origin:
    """Source of a value."""

    name: str
    """File and line, or command-line option, for messages."""
    folder: Path
    """Folder to which relative paths refer."""


def option(name: str) -> Origin:
    """Return the origin of a value given by a command-line option."""
    return Origin(name, Path.cwd())


@dataclass(frozen=True)
class Change:
    """A new value for one key of an experiment."""

    key: str
    value: object
    origin: Origin


@dataclass(frozen=True)
class _LayeredDocument(Document):
    """A document changed by overlay files and changes, with the origin of every value."""

    origins: dict[Location, Origin] = field(default_factory=dict)
    """Origins of the values that do not come from the document itself."""

    def where(self, location: Location) -> str:
        nearest = self._nearest(location)
        source = super().where(location) if nearest is None else self.origins[nearest].name
        inside = [key for key in self.origins if location and key != nearest and key[: len(location)] == location]
        if nearest is None:
            inside = [key for key in inside if key not in self.overridden]  # super() has named these
        others = {self.origins[key].name: None for key in inside if self.origins[key].name != source}
        return source + (f" with {', '.join(others)}" if others else "")

    def base_folder(self, location: Location) -> Path:
        nearest = self._nearest(location)
        return self.folder if nearest is None else self.origins[nearest].folder

    def _nearest(self, location: Location) -> Location | None:
        """Return the longest prefix of ``location`` with a recorded origin, or None."""
        return max((key for key in self.origins if location[: len(key)] == key), key=len, default=None)

    def put(self, key: Location, value: object, origin: Origin) -> None:
        """Set one value and record its origin. Raises ConfigError if its location cannot exist."""
        num_before = len(self.created)
        try:
            location = self.set(key, deepcopy(value))
        except ConfigError as error:
            raise ConfigError(f"{origin.name}: {dotted(key)}: {error}") from None
        self.record_origin([*self.created[num_before:], location], origin)
        del self.created[num_before:]  # that list is for groups created by overrides

    def record_origin(self, locations: Iterable[Location], origin: Origin) -> None:
        """Record the origin of the values now at ``locations``, replacing the origins of everything below them."""
        for location in locations:
            for replaced in [key for key in self.origins if key[: len(location)] == location]:
                del self.origins[replaced]
            self.origins[location] = origin

    def copy(self) -> _LayeredDocument:
        """Return an independent copy."""
        return replace(self, tree=deepcopy(self.tree), created=list(self.created), origins=dict(self.origins))


@dataclass(frozen=True)
class Protocol:
    """An experiment and the settings that a sweep varies."""

    base: ExperimentConfig
    sweep: SweepConfig
    _document: _LayeredDocument

    @property
    def title(self) -> str:
        """Title of the protocol's tables."""
        return self.sweep.title or self.base.name

    def origin(self, *keys: str) -> Origin:
        """Return the origin of the value at ``keys`` of the sweep."""
        location = (SWEEP_KEY, *keys)
        return Origin(self._document.where(location), self._document.base_folder(location))

    def experiment(self, changes: Iterable[Change]) -> ExperimentConfig:
        """Return the experiment with ``changes`` applied. Raises ConfigError with one line and origin per problem."""
        document = self._document.copy()
        for change in changes:
            document.put(tuple(change.key.split(".")), change.value, change.origin)
        return experiment_of(document)


def load_protocol(
    path: str | Path,
    overrides: Sequence[str] = (),
    overlays: Sequence[str | Path] = (),
    rescale: Callable[[ExperimentConfig], Settings] | None = None,
) -> Protocol:
    """Load a protocol. An experiment file without ``sweep`` is a protocol of one run.

    Overlays are partial protocol files, whose values replace those of ``path``. ``rescale`` receives the experiment
    before ``overrides`` (``training.epochs=3``) and returns settings, which the overrides can still replace.
    Raises ConfigError with one line per problem.
    """
    document = _layered(path, overlays)
    sweep_tree = document.tree.pop(SWEEP_KEY, {})
    if rescale is not None:
        expand_task_names(document)
        for key, value in rescale(experiment_of(document.copy())).items():
            document.put(tuple(key.split(".")), value, option("--scale"))
    _override(document, overrides)
    base = experiment_of(document)
    sweep_document = replace(document, tree={SWEEP_KEY: sweep_tree})
    return Protocol(base, validate(_SweepFile, sweep_document).sweep, document)


def load_with_overlays(
    path: str | Path, overrides: Sequence[str] = (), overlays: Sequence[str | Path] = ()
) -> ExperimentConfig:
    """Load the experiment of one run: as ``loading.load_experiment``, with overlays as in ``load_protocol``.

    Raises ConfigError with one line per problem, or if one of the files describes a sweep.
    """
    document = _layered(path, overlays)
    refuse_protocol(document, path)
    _override(document, overrides)
    return experiment_of(document)


def _layered(path: str | Path, overlays: Sequence[str | Path]) -> _LayeredDocument:
    """Return the file at ``path`` with the values of the overlays."""
    file = read_document(Path(path))
    document = _LayeredDocument(file.label, file.folder, file.tree, file.root)
    for overlay in map(Path, overlays):
        _apply_overlay(document, read_document(overlay))
    return document


def _override(document: _LayeredDocument, overrides: Sequence[str]) -> None:
    apply_overrides(document, overrides)
    document.record_origin([*document.created, *document.overridden], option(OVERRIDE))


class _SweepFile(Strict):
    """The part of a protocol file that does not belong to the experiment."""

    sweep: SweepConfig
    """Settings that vary between trials."""


def _apply_overlay(document: _LayeredDocument, overlay: Document) -> None:
    """Apply an overlay file: mappings are merged; all other values, including lists, are replaced."""
    resolve_paths(overlay)
    for location, value in _leaves(overlay.tree):
        document.put(location, value, Origin(overlay.where(location), overlay.folder))


def _leaves(tree: Mapping[str, object], parent: Location = ()) -> Iterator[tuple[Location, object]]:
    """Yield the location and value of every leaf; lists and empty mappings are leaves."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*parent, key))
        else:
            yield (*parent, key), value
