"""The extension of a run by further items of its stream, as its directory records it.

The manifest is written before ``config.yaml``, and the result of the run that was finished goes first. So a process
that ends in between leaves a run that has not finished, and whoever locks it next finishes the extension.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml
from ray_l4.store.atomic import write_text
from ray_l4.store.begun_with import EXPERIMENT_KEY, recorded
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.sealed import write_record


def record_extension(run: RunDirectory, experiment: ExperimentConfig, entries: Mapping[str, Any]) -> None:
    """Record that a run goes on with ``experiment``, whose stream begins with that of the run.

    ``entries``: what changes in the manifest beside it.
    """
    for name in ("report.md", "summary.json"):
        (run.path / name).unlink(missing_ok=True)
    write_record(run.path / "manifest.json", {**run.manifest(), **entries, **recorded(experiment)})
    _write_config(run, experiment)


def finish_extension(run: RunDirectory) -> None:
    """Finish an extension that was cut off: add the items that only the manifest has to ``config.yaml``."""
    missing = _missing_items(run)
    if missing:
        experiment = run.experiment()
        stream = [*experiment.model_dump(mode="json")["stream"], *missing]
        tree = experiment.model_dump(mode="json", exclude_unset=True) | {"stream": stream}
        _write_config(run, ExperimentConfig.model_validate_json(json.dumps(tree)))


def was_cut_off(run: RunDirectory) -> bool:
    """Return whether an extension has to be finished (``finish_extension``)."""
    return bool(_missing_items(run))


def _missing_items(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the items at the end of the stream that only the manifest has."""
    extended = run.manifest().get(EXPERIMENT_KEY, {}).get("stream", [])
    begun = run.experiment().model_dump(mode="json")["stream"]
    if [item["name"] for item in extended[: len(begun)]] != [item["name"] for item in begun]:
        return []  # a difference that the user has made, and that is refused elsewhere
    return list(extended[len(begun) :])


def _write_config(run: RunDirectory, experiment: ExperimentConfig) -> None:
    write_text(run.path / "config.yaml", dump_yaml(experiment))
