"""Adapters are a switch of their own: every method learns a stream with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import GPT2Config

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import METHODS
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small
from tests.run.run_fixtures import WITHOUT_OTHERS, cluster, complete_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model, and two tasks as one's own data."""
    folder = tmp_path_factory.mktemp("adapters")
    adapted.save_base(folder / "base", GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=512))
    for task in adapted.TASKS:
        (folder / task).mkdir()
        for split, count in (("train", 8), ("test", 2)):
            lines = [json.dumps(row) for row in small.examples(task, count).to_pylist()]
            (folder / task / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def experiment(folder: Path, method: str) -> ExperimentConfig:
    """As little as there can be: one epoch of a few steps a task."""
    sections = {
        "method": method,
        "stream": [
            {"name": task, "path": folder / task, "metric": "em", "train": "all", "test": "all"}
            for task in adapted.TASKS
        ],
        "model": {"name": str(folder / "base"), "lora": {"rank": 2}},
        "training": {"epochs": 1, "batch_size": 4},
        "optim": {"variant": "torch", "lr": 1e-2},
        "replay": {"ratio": 0.5, "max_length": 24},
        "evaluation": {"max_new_tokens": 2},
    }
    return ExperimentConfig.model_validate(sections)


QUICK = ("l4", "l2kd-seq", "ewc", "single-qa", "olora")
"""Methods that differ in what adapters have to do with; the others are left to a full run."""


@pytest.mark.parametrize(
    "method",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in WITHOUT_OTHERS
        if METHODS[name].learns
    ],
)
def test_every_method_learns_with_adapters(folder: Path, tmp_path: Path, method: str) -> None:
    run, summary = complete_run(experiment(folder, method), cluster("in_process"), tmp_path / "run")
    stages = len(summary["stages"])
    assert all(len(rows) == stages for rows in summary["score_matrix"].values())
    checkpoints = list((run.path / "checkpoints").rglob("*.safetensors"))
    assert len(checkpoints) >= stages
    assert {path.name for path in checkpoints} == {"adapter_model.safetensors"}
    for path in checkpoints:
        learned = [tensor.any() for name, tensor in load_file(path).items() if "lora_B" in name]
        assert learned and all(learned), "B starts at zero"
