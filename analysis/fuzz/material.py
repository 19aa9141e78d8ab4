"""Undamaged material: small runs, finished and unfinished, made once and kept in a folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

EXPERIMENT: dict[str, Any] = {
    "name": "small",
    "method": "l4",
    "stream": [{"name": "mini.woz", "train": 16, "test": 4}, {"name": "mini.rest", "train": 16, "test": 4}],
    "model": {"from_scratch": {"layers": 1, "width": 16, "heads": 2, "positions": 96, "vocabulary": 400}},
    "training": {"epochs": 2, "batch_size": 8},
    "optim": {"variant": "torch", "lr": 2.0e-3},
    "replay": {"ratio": 0.25, "max_length": 24},
    "evaluation": {"max_new_tokens": 4, "when": "epoch", "validation": 0.25},
}
"""An experiment whose run takes seconds."""

METHODS = {"l4": {}, "l2kd-seq": {"evaluation": {"max_new_tokens": 4}}}
"""Runs of the material: by method, with the settings that differ. The second trains teachers, who answer."""

PROFILE: dict[str, Any] = {
    "students": {"cpus": 1},
    "evaluators": {"count": 1},
    "exchange": {"transport": "in_process"},
}
"""A profile for a run in this process."""


def build(folder: Path) -> Path:
    """Write the runs ``METHOD`` and ``METHOD-unfinished`` into ``folder``, unless they are there, and return it."""
    for method, changes in METHODS.items():
        if not (folder / f"{method}-unfinished" / "state.json").is_file():
            _run(folder, method, changes)
    return folder


def _run(folder: Path, method: str, changes: dict[str, Any]) -> None:
    from ray_l4.cli.main import app

    folder.mkdir(parents=True, exist_ok=True)
    run = folder / method
    shutil.rmtree(run, ignore_errors=True)
    for name, tree in (("experiment", EXPERIMENT | {"method": method} | changes), ("profile", PROFILE)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    arguments = ["run", folder / "experiment.yaml", "--cluster", folder / "profile.yaml", "--run-dir", run]
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    if done.exit_code:
        raise RuntimeError(f"the material of {method} cannot be made: {done.output}")
    _interrupt(run, folder / f"{method}-unfinished")


def _interrupt(run: Path, copy: Path) -> None:
    """Copy a finished run as it would be if it had ended in its second stage."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy, copy_function=os.link)
    for path in (*copy.glob("*/stage-1.*"), copy / "summary.json", *copy.glob("report.*")):
        path.unlink(missing_ok=True)
    shutil.rmtree(copy / "checkpoints" / "stage-1")
    state = json.loads((copy / "state.json").read_bytes()) | {"stages_done": 1}
    (copy / "state.json").unlink()
    (copy / "state.json").write_text(json.dumps(state), encoding="utf-8")
