"""Whole runs of O-LoRA: what stays of each task's adapters, interruptions, extensions and Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.run import execute
from ray_l4.run.session import start
from tests.learner import adapter_fixtures as adapted
from tests.run import run_fixtures as small
from tests.run.test_run_extension import SILENT

RANK = 2
STREAM = [{"name": "mini.rest", "train": 16, "test": 4}, {"name": "mini.woz", "train": 16, "test": 4}]
STREAM += [{"name": "mini.sql", "train": 16, "test": 4}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    return adapted.save_base(folder, GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=128))


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> small.Finished:
    """A run over three stages."""
    return small.complete_run(experiment(base), small.cluster("in_process"), tmp_path_factory.mktemp("whole") / "run")


def experiment(base: Path, stages: int = 3, **lora: Any) -> ExperimentConfig:
    model = {"name": str(base), "spare_task_tokens": 5 - stages, "max_length": 128, "lora": {"rank": RANK, **lora}}
    return small.quick("olora", model=model, stream=STREAM[:stages], training={"epochs": 2})


def blocks(run: Any, stage: int) -> dict[str, tuple[Tensor, ...]]:
    """Matrix -> its block of every stage, at the end of ``stage``."""
    state = load_file(run.checkpoint(stage, 2, 0) / "adapter_model.safetensors")
    return {
        name: tensor.split(RANK, dim=0 if "lora_A" in name else 1) for name, tensor in state.items() if "lora" in name
    }


def test_every_stage_changes_its_own_block_alone(whole: small.Finished) -> None:
    run, _ = whole
    after = [blocks(run, stage) for stage in range(3)]
    for name in after[0]:
        for stage in (1, 2):
            changed = [
                one.numpy().tobytes() != other.numpy().tobytes()
                for one, other in zip(after[stage - 1][name], after[stage][name], strict=True)
            ]
            assert changed == [own == stage for own in range(8)], "8 subspaces, bit for bit"
        if "lora_B" in name:
            assert [bool(block.any()) for block in after[2][name]] == [True] * 3 + [False] * 5
    penalties = [[row["penalty"] for row in run.step_figures() if row["stage"] == stage] for stage in range(3)]
    assert not any(penalties[0]) and all(penalties[1]) and all(penalties[2])
    assert not (run.path / "guards").exists(), "the checkpoint has all that is known"


@pytest.mark.parametrize("line", ["learning mini.woz", "learning mini.sql"])
def test_it_goes_on_as_if_it_had_not_been_stopped(base: Path, whole: small.Finished, tmp_path: Path, line: str) -> None:
    setup, run = small.stopped_run(experiment(base), tmp_path / "run", line)
    summary = small.finish(start(setup, small.cluster("in_process"), run))
    small.assert_equal(run, whole[0])
    assert len(small.weights(run)) == 3
    assert summary["score_matrix"] == whole[1]["score_matrix"]


def test_on_ray_it_learns_the_same(base: Path, whole: small.Finished, tmp_path: Path, ray_cluster: None) -> None:
    profile = small.cluster("object_store", evaluators={"count": 2})
    run, summary = small.complete_run(experiment(base), profile, tmp_path / "run")
    small.assert_equal(run, whole[0])
    assert summary["score_matrix"] == whole[1]["score_matrix"]


def test_more_stages_than_subspaces_are_refused(base: Path, tmp_path: Path) -> None:
    """Before a run begins and when it is extended, which leaves it as it is."""
    profile = small.cluster("in_process")
    with pytest.raises(ConfigError, match="3 stages for 2 subspaces of the adapters"):
        small.new_run(experiment(base, subspaces=2), profile, tmp_path / "none")
    run, _ = small.complete_run(experiment(base, 2, subspaces=2), profile, tmp_path / "run")
    before = (run.path / "config.yaml").read_bytes(), run.state()
    with pytest.raises(ConfigError, match=r"3 stages for 2 subspaces.*model\.lora\.subspaces: 3"):
        execute.extend(run, [TaskConfig.model_validate(STREAM[2])], profile, "ray-l4 extend", SILENT)
    assert ((run.path / "config.yaml").read_bytes(), run.state()) == before
