"""A small run, with or without Ray, and what it left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.runtime.session import Session, start
from ray_l4.runtime.setup import Setup, prepare
from ray_l4.store.atomic import write_folder
from ray_l4.store.run_directory import RunDirectory

LIMIT = 180.0


def experiment(**changes: Any) -> ExperimentConfig:
    """Two embedded tasks, a tiny model, two epochs: half a minute on Ray, seconds without."""
    sections: dict[str, Any] = {
        "name": "small",
        "stream": [{"name": "mini.woz", "train": 40, "test": 8}, {"name": "mini.sql", "train": 40, "test": 8}],
        "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400}},
        "training": {"epochs": 2, "batch_size": 8},
        "optim": {"variant": "torch", "lr": 2e-3},
        "replay": {"ratio": 0.5, "chunk": 4, "max_length": 40},
        "evaluation": {"chunk": 4, "max_new_tokens": 8},
    }
    return ExperimentConfig.model_validate(sections | changes)


def cluster(transport: str, **changes: Any) -> ClusterConfig:
    """A profile for tests: no CPU is reserved, so that everything fits on whatever machine there is."""
    sections = {"students": {"cpus": 0.5}, "exchange": {"transport": transport}}
    return ClusterConfig.model_validate(sections | changes)


def new_run(config: ExperimentConfig, profile: ClusterConfig, folder: Path) -> tuple[Setup, RunDirectory]:
    """A prepared run directory."""
    setup = prepare(config)
    manifest = {"command": "test", "versions": {}, "platform": "", "data_fingerprint": setup.fingerprint()}
    run = RunDirectory.create(folder, setup.experiment, profile, manifest)
    write_folder(run.path / "tokenizer", setup.tokenizer.save)
    return setup, run


def finish(session: Session) -> dict[str, Any]:
    """The summary, once the run has ended."""
    try:
        assert session.wait(LIMIT), f"the run did not end within {LIMIT:g} s: {session.look()}"
        return session.result()
    finally:
        session.close()


def complete_run(config: ExperimentConfig, profile: ClusterConfig, folder: Path) -> tuple[RunDirectory, dict[str, Any]]:
    """A run from beginning to end."""
    setup, run = new_run(config, profile, folder)
    return run, finish(start(setup, profile, run))


def weights(run: RunDirectory) -> dict[str, bytes]:
    """Every checkpoint's bytes by its place in the run directory."""
    paths = sorted((run.path / "checkpoints").rglob("model.safetensors"))
    return {str(path.relative_to(run.path)): path.read_bytes() for path in paths}


def scores(run: RunDirectory) -> dict[str, dict[str, float]]:
    """Every score by the name of its cell."""
    return {cell.name: record["values"] for cell, record in run.scores().items()}
