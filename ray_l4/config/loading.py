"""Loading of experiment files and cluster profiles: read, override, resolve paths, validate.

Every mistake raises ConfigError with the file and line, or the option, that caused it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.document import Document, read_document
from ray_l4.config.experiment import DataConfig, ExperimentConfig
from ray_l4.config.paths import expand_home, is_path, raw_from_environment
from ray_l4.config.problems import dotted, explain, keys_of, takes_text
from ray_l4.config.profile_names import profile_path
from ray_l4.config.strict_yaml import Location, dump
from ray_l4.errors import ConfigError

SWEEP_KEY = "sweep"
"""Key that turns an experiment file into a protocol (``protocol.py``)."""

OWN_SPLIT = "dev"
"""The value of ``evaluation.validation`` that is not a path."""

CLUSTER_PREFIX = "cluster."
"""Beginning of a key of the cluster profile where ``--set`` serves both files."""

TOPOLOGY_NAMES = ("complete", "ring", "star")
"""Named values of ``peers.topology``. Any other text is the path of a file."""

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Load an experiment file and apply ``overrides`` (``training.epochs=3``, ``stream.0.train=100``).

    Relative paths refer to the folder of the file; those of an override, to the current folder. If the file does not
    set ``data.raw``, it is ``$RAY_L4_DATA/raw``, if that folder exists. Raises ConfigError with one line per problem.
    """
    document = read_document(Path(path))
    refuse_protocol(document, path)
    apply_overrides(document, overrides)
    return experiment_of(document)


def refuse_protocol(document: Document, path: str | Path) -> None:
    """Raise ConfigError if ``document``, read for a run from ``path``, describes a sweep."""
    if SWEEP_KEY in document.tree:
        raise ConfigError(
            f"{document.where((SWEEP_KEY,))}: {SWEEP_KEY}: this file is a protocol, which describes many runs. "
            f"Start them with: ray-l4 sweep {path}"
        )


def experiment_of(document: Document) -> ExperimentConfig:
    """Complete ``document`` in place and return its experiment. Raises ConfigError with one line per problem."""
    expand_task_names(document)
    resolve_paths(document)
    _fill_in_raw_folder(document)
    _check_topology_pairs(document)
    return validate(ExperimentConfig, document)


def with_overrides(experiment: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """Return the experiment with ``--set`` values. Settings that it does not set itself stay unset.

    Raises ConfigError with a line for each that is wrong.
    """
    document = Document("--set", Path.cwd(), experiment.model_dump(mode="json", exclude_unset=True))
    apply_overrides(document, overrides)
    return experiment_of(document)


def load_cluster(path: str | Path | None = None, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Load a cluster profile, by default the built-in one, and apply ``overrides`` (``students.gpus=0.5``).

    ``path``: a file, or the name of one of the project's profiles (``laptop``). Raises ConfigError with one line per
    problem.
    """
    document = Document("default profile", Path.cwd()) if path is None else read_document(profile_path(path))
    apply_overrides(document, overrides, ClusterConfig)
    return validate(ClusterConfig, document)


def dump_yaml(model: BaseModel) -> str:
    """Return all settings as YAML, defaults included, in the order of the fields. It loads to an equal object."""
    return dump(model.model_dump(mode="json"))


def data_config(raw: Path | None = None) -> DataConfig:
    """Return the data settings of a command without experiment: ``raw``, or else ``$RAY_L4_DATA/raw`` if it exists."""
    return DataConfig(raw=raw or _existing_raw())


def apply_overrides(document: Document, overrides: Sequence[str], model: type[BaseModel] = ExperimentConfig) -> None:
    """Apply ``--set`` overrides to a ``document`` of ``model``. Raises ConfigError with a line per one that fails."""
    problems = []
    expand_task_names(document)
    for text in overrides:
        try:
            document.override(text, partial(takes_text, model))
        except ConfigError as error:
            problems.append(str(error))
        expand_task_names(document)
    if problems:
        raise ConfigError("\n".join(problems))


def validate(model: type[ModelT], document: Document) -> ModelT:
    """Return the document as a ``model``. Raises ConfigError with one line per problem."""
    # Strict, so that `true` is not a number; JSON, because strict Python input would have to contain Path objects.
    try:
        return model.model_validate_json(json.dumps(document.tree), strict=True)
    except ValidationError as error:
        settable = [*keys_of(ExperimentConfig), *keys_of(ClusterConfig, CLUSTER_PREFIX)]
        raise ConfigError("\n".join(explain(error, model, document.where, settable))) from None


def expand_task_names(document: Document) -> None:
    """Replace plain task names in the stream by mappings, so that overrides can set their keys."""
    for location, item in _items(document, ("stream",)):
        if isinstance(item, str):
            document.set(location, {"name": item})


def _items(document: Document, location: Location) -> Iterator[tuple[Location, object]]:
    """Yield the location and value of every item of the list at ``location``; nothing if it is not a list."""
    items = document.get(location)
    for index, item in enumerate(items if isinstance(items, list) else ()):
        yield (*location, index), item


def resolve_paths(document: Document) -> None:
    """Make paths absolute: relative to the folder of the file, or to the current folder if set by ``--set``."""
    paths: list[Location] = [("data", "raw"), ("data", "converted"), ("teachers", "run"), ("evaluation", "general")]
    paths += [(*task, "path") for task, _ in _items(document, ("stream",))]
    if document.get(("peers", "topology")) not in TOPOLOGY_NAMES:
        paths.append(("peers", "topology"))
    if document.get(("evaluation", "validation")) != OWN_SPLIT:
        paths.append(("evaluation", "validation"))
    for location in paths:
        value = document.get(location)
        if isinstance(value, str):
            document.set(location, str(document.base_folder(location).absolute() / expand_home(value)))
    for model in [("model",), *((*peer, "model") for peer, _ in _items(document, ("peers", "each")))]:
        location = (*model, "name")
        name = document.get(location)
        if not isinstance(name, str):
            continue
        folder = document.base_folder(location).absolute() / expand_home(name)
        if is_path(name) or folder.exists():
            document.set(location, str(folder))


def _check_topology_pairs(document: Document) -> None:
    """Check the items of a list of pairs. Validation of the union type cannot name the item that is wrong."""
    for location, item in _items(document, ("peers", "topology")):
        if not (isinstance(item, list) and len(item) == 2 and all(type(peer) is int and peer >= 0 for peer in item)):
            raise ConfigError(
                f"{document.where(location)}: {dotted(location)}: expected a pair [teacher, student] of peer numbers, "
                f"counted from 0, found {json.dumps(item)}"
            )


def _fill_in_raw_folder(document: Document) -> None:
    data = document.tree.setdefault("data", {})
    raw = _existing_raw()
    if raw is not None and isinstance(data, dict):
        data.setdefault("raw", str(raw))


def _existing_raw() -> Path | None:
    raw = raw_from_environment()
    return raw.absolute() if raw is not None and raw.is_dir() else None
