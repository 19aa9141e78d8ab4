"""What a run began with, as its manifest knows it: the experiment and the versions of the libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ray_l4.config.experiment import WITHOUT_EFFECT, ExperimentConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.store.run_directory import RunDirectory, read_json

EXPERIMENT_KEY = "experiment"
"""Manifest key of the experiment, all settings included."""

FINGERPRINT_KEY = "data_fingerprint"
"""Manifest key of the fingerprints of the run's data and tokeniser: item of the stream -> digest."""

VERSIONS_KEY = "versions"
"""Manifest key of the versions of the libraries, by name."""

_MOST_SHOWN = 8
"""Differences that a message lists."""


def begun_versions(run: RunDirectory) -> dict[str, str]:
    """Return the versions of Python and of the libraries at a run's start, as far as its manifest has them.

    Raises RunDirectoryError if the manifest is damaged.
    """
    path = run.path / "manifest.json"
    manifest = read_json(path)
    libraries = manifest.get(VERSIONS_KEY, {})
    python = {"python": manifest["python"]} if "python" in manifest else {}
    if not isinstance(libraries, dict) or not all(isinstance(each, str) for each in (libraries | python).values()):
        raise RunDirectoryError(
            f"{path}: damaged: expected a text for each version at the run's start, found "
            f"{_short({VERSIONS_KEY: libraries, **python})}. Restore it."
        )
    return libraries | python


def recorded(experiment: ExperimentConfig) -> dict[str, Any]:
    """Return the manifest's entry about the experiment of a new run."""
    return {EXPERIMENT_KEY: experiment.model_dump(mode="json")}


def check_experiment(path: Path, experiment: ExperimentConfig, manifest: Mapping[str, Any]) -> None:
    """Raise RunDirectoryError if ``experiment``, read from the file at ``path``, is not that of the run's start.

    A run of a version that recorded no experiment passes.
    """
    if EXPERIMENT_KEY not in manifest:
        return
    try:
        # Validated, so that settings which later versions added have their defaults on both sides.
        begun = ExperimentConfig.model_validate_json(json.dumps(manifest[EXPERIMENT_KEY]))
    except ValidationError as error:
        raise RunDirectoryError(
            f"{path.parent / 'manifest.json'}: its experiment is not valid in this version: {error.errors()[0]['msg']}"
        ) from None
    changes = list(_differences("", begun.model_dump(mode="json"), experiment.model_dump(mode="json")))
    if changes:
        more = f", and {len(changes) - _MOST_SHOWN} more" if len(changes) > _MOST_SHOWN else ""
        raise RunDirectoryError(
            f"{path}: not the experiment that this run began with: {'; '.join(changes[:_MOST_SHOWN])}{more}. A run is "
            "resumed with the settings of its start: undo these changes, or begin a new run with them "
            f"(ray-l4 run {path} --run-dir FOLDER). Where it runs may change: --cluster PROFILE.yaml."
        )


def changed_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return ``library old, now new`` for each library whose version is not that of the run's start."""
    names = [name for name in now if name in then and then[name] != now[name]]
    return [f"{name} {then[name]}, now {now[name]}" for name in names]


def _differences(key: str, begun: Any, found: Any) -> Iterator[str]:
    """Yield ``key: old, now new`` for each setting below ``key`` that differs."""
    if begun == found or any(fnmatchcase(key, pattern) for pattern in WITHOUT_EFFECT):
        return
    children: list[Any] | range = []
    if isinstance(begun, dict) and isinstance(found, dict):
        children = sorted({*begun, *found})
        begun, found = ({name: side.get(name) for name in children} for side in (begun, found))
    elif isinstance(begun, list) and isinstance(found, list) and len(begun) == len(found):
        children = range(len(begun))
    if children:
        for child in children:
            yield from _differences(f"{key}.{child}" if key else str(child), begun[child], found[child])
    else:
        yield f"{key} was {_short(begun)}, now {_short(found)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
