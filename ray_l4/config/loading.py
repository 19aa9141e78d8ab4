"""Configuration from files: read, override, resolve paths, check. Every mistake is a ConfigError that says where."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.document import Document, read_document
from ray_l4.config.experiment import DataConfig, ExperimentConfig
from ray_l4.config.problems import dotted, explain
from ray_l4.config.strict_yaml import Location, dump
from ray_l4.errors import ConfigError

SWEEP_KEY = "sweep"
"""The key that makes an experiment file a protocol (``protocol.py``)."""

DATA_VARIABLE = "RAY_L4_DATA"
"""Environment variable: the folder that holds ``raw/``."""

GRAPHS = ("complete", "ring", "star")
"""Values of ``peers.topology`` that are names; any other text is the path of a file."""

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment of a YAML file, changed by ``overrides`` (``training.epochs=3``, ``stream.0.train=100``).

    Relative paths start at the folder of the file, those of an override at the current one. ``data.raw`` is
    ``$RAY_L4_DATA/raw`` if the file says nothing and that folder exists. Raises ConfigError, one line for each problem.
    """
    document = read_document(Path(path))
    if SWEEP_KEY in document.tree:
        raise ConfigError(
            f"{document.where((SWEEP_KEY,))}: {SWEEP_KEY}: this file is a protocol, which stands for many runs. "
            f"Start them with: ray-l4 sweep {path}"
        )
    apply_overrides(document, overrides)
    return experiment_of(document)


def experiment_of(document: Document) -> ExperimentConfig:
    """The experiment of a document, which is completed on the way. Raises ConfigError, one line for each problem."""
    expand_task_names(document)
    resolve_paths(document)
    _find_data(document)
    _refuse_what_is_no_pair(document)
    return check(ExperimentConfig, document)


def load_cluster(path: str | Path | None = None, overrides: Sequence[str] = ()) -> ClusterConfig:
    """The cluster profile of a YAML file, or the default one, changed by ``overrides`` (``students.gpus=0.5``).

    Raises ConfigError, one line for each problem.
    """
    document = Document("default profile", Path.cwd()) if path is None else read_document(Path(path))
    apply_overrides(document, overrides)
    return check(ClusterConfig, document)


def dump_yaml(model: BaseModel) -> str:
    """The whole configuration as YAML, defaults included, in the order of its fields; it loads to an equal object."""
    return dump(model.model_dump(mode="json"))


def data_config(raw: Path | None = None) -> DataConfig:
    """Where the data is when there is no experiment file: at ``raw``, else at ``$RAY_L4_DATA/raw`` if it exists."""
    return DataConfig(raw=raw or _raw_of_environment())


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Change a document by ``--set`` texts. Raises ConfigError, one line for each that is impossible."""
    problems = []
    expand_task_names(document)
    for text in overrides:
        try:
            document.override(text)
        except ConfigError as error:
            problems.append(str(error))
        expand_task_names(document)
    if problems:
        raise ConfigError("\n".join(problems))


def check(model: type[ModelT], document: Document) -> ModelT:
    """The document as a ``model``. Raises ConfigError, one line for each problem."""
    # Strict, so that `true` is no number; as JSON, because strict Python input would have to hold Path objects.
    try:
        return model.model_validate_json(json.dumps(document.tree), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, document.where))) from None


def expand_task_names(document: Document) -> None:
    """Write a task's bare name as a mapping, so that an override can reach into it."""
    for location, item in _items(document, ("stream",)):
        if isinstance(item, str):
            document.set(location, {"name": item})


def _items(document: Document, of: Location) -> Iterator[tuple[Location, object]]:
    items = document.get(of)
    for index, item in enumerate(items if isinstance(items, list) else ()):
        yield (*of, index), item


def resolve_paths(document: Document) -> None:
    """Make relative paths absolute: those of the file start at its folder, those of ``--set`` at the current one."""
    paths: list[Location] = [("data", "raw"), ("data", "converted"), ("teachers", "run")]
    paths += [(*task, "path") for task, _ in _items(document, ("stream",))]
    if document.get(("peers", "topology")) not in GRAPHS:
        paths.append(("peers", "topology"))
    for location in paths:
        value = document.get(location)
        if isinstance(value, str):
            path = Path(value).expanduser() if value.startswith("~/") else Path(value)
            document.set(location, str(document.base_of(location).absolute() / path))
    for model in [("model",), *((*peer, "model") for peer, _ in _items(document, ("peers", "each")))]:
        location = (*model, "name")
        name = document.get(location)
        if isinstance(name, str) and (folder := document.base_of(location) / name).is_dir():
            document.set(location, str(folder))


def _refuse_what_is_no_pair(document: Document) -> None:
    """Said here, because among all that ``peers.topology`` may be, its type cannot say what is wrong with one item."""
    for location, item in _items(document, ("peers", "topology")):
        if not (isinstance(item, list) and len(item) == 2 and all(type(peer) is int and peer >= 0 for peer in item)):
            raise ConfigError(
                f"{document.where(location)}: {dotted(location)}: expected a pair [teacher, student] of the numbers of "
                f"two peers, counted from 0, found {json.dumps(item)}"
            )


def _find_data(document: Document) -> None:
    data = document.tree.setdefault("data", {})
    raw = _raw_of_environment()
    if raw is not None and isinstance(data, dict):
        data.setdefault("raw", str(raw))


def _raw_of_environment() -> Path | None:
    folder = os.environ.get(DATA_VARIABLE)
    raw = Path(folder or "").absolute() / "raw"
    return raw if folder and raw.is_dir() else None
