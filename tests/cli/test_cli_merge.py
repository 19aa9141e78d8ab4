"""A run with adapters, from training to a merged model folder, through the real entry point."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from ray_l4.store.run_directory import RunDirectory, RunState
from tests.cli.cli_fixtures import IN_PROCESS, ray_l4, refused, write_experiment
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small

pytestmark = pytest.mark.end_to_end


def own_data(folder: Path, task: str) -> Path:
    """Write a task's examples as a folder of custom data."""
    folder.mkdir()
    for split, count, seed in (("train", 24, 0), ("test", 6, 1)):
        lines = [json.dumps(row) for row in small.examples(task, count, seed).to_pylist()]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run in which two Llama peers learn two tasks with adapters."""
    folder = tmp_path_factory.mktemp("lora")
    adapted.save_base(folder / "base", adapted.CONFIGS["llama, tied"])
    experiment = {
        "method": "l4",
        "stream": [
            {"name": task, "path": str(own_data(folder / task, task)), "metric": "em", "train": "all", "test": "all"}
            for task in adapted.TASKS
        ],
        "model": {"name": str(folder / "base"), "lora": {"rank": 4, "dropout": 0.1}},
        "training": {"epochs": 1, "batch_size": 8},
        "optim": {"variant": "torch", "lr": 1e-2},
        "replay": {"ratio": 0.25, "max_length": 30},
        "evaluation": {"max_new_tokens": 6},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    result = ray_l4("run", folder / "experiment.yaml", "--cluster", IN_PROCESS, "--run-dir", folder / "run")
    assert result.returncode == 0, result.stderr
    assert "peers will stay equal" not in result.stdout
    return RunDirectory.open(folder / "run")


def test_checkpoints_hold_only_adapters(finished: RunDirectory) -> None:
    for stage in range(2):
        for student in range(2):
            names = {path.name for path in finished.checkpoint(stage, 1, student).iterdir()}
            assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "task_tokens.json"} <= names
            assert not {"config.json", "model.safetensors"} & names
    one, other = (finished.checkpoint(1, 1, student) / "adapter_model.safetensors" for student in range(2))
    assert one.read_bytes() != other.read_bytes()


def test_a_merged_checkpoint_answers_as_before(finished: RunDirectory, tmp_path: Path) -> None:
    folder, data = finished.checkpoint(1, 1, 0), finished.path.parent / "b"
    result = ray_l4("merge", folder, tmp_path / "merged")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "merged") in result.stdout
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    options = ("--task", "b", "--path", data, "--metric", "em", "--show", 6)
    settings = ("--experiment", finished.path / "config.yaml")
    before, after = (ray_l4("evaluate", *words, *options) for words in ([folder], [tmp_path / "merged", *settings]))
    assert before.returncode == 0, before.stderr
    assert before.stderr.count("prediction:") == 6
    assert after.stderr.split("\n")[1:] == before.stderr.split("\n")[1:], "all but the name of the model"
    assert json.loads(after.stdout)["em"] == json.loads(before.stdout)["em"] == finished_score(finished)


def finished_score(run: RunDirectory) -> float:
    """Return the score of student 0 on task b after task b."""
    value: float = run.summary()["score_matrix"]["0"][1][1]
    return value


def test_resume_starts_from_adapters(finished: RunDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    run = RunDirectory.open(copy)
    expected = run.summary()
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "stage-1")
    lost = [copy.glob("scores/*"), copy.glob("predictions/*"), copy.glob("steps/stage-1.*"), copy.glob("replay/*")]
    for path in (path for paths in lost for path in paths):
        path.unlink()
    run.save_state(RunState(stages_done=1))
    result = ray_l4("resume", copy, "--cluster", IN_PROCESS)
    assert result.returncode == 0, result.stderr
    assert run.summary()["score_matrix"] == expected["score_matrix"]
    for student in range(2):
        one, other = (r.checkpoint(1, 1, student) / "adapter_model.safetensors" for r in (finished, run))
        assert one.read_bytes() == other.read_bytes()


def test_merging_refuses_an_existing_folder_and_a_model_without_adapters(
    finished: RunDirectory, tmp_path: Path
) -> None:
    folder = finished.checkpoint(1, 1, 0)
    refused(ray_l4("merge", folder, finished.path), 2, "exists already")
    refused(ray_l4("merge", finished.path, tmp_path / "out"), 4, "a checkpoint with adapters", f": {finished.path}/ch")
    refused(ray_l4("merge", tmp_path / "gone", tmp_path / "out"), 4, f"no such folder, looked for at {tmp_path}/gone")
    refused(ray_l4("merge", finished.path.parent / "base", tmp_path / "out"), 4, "without adapters", "Use it as it is")


def test_adapters_need_a_pretrained_model(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    refused(ray_l4("run", path, "--dry-run", "--set", "model.lora.rank=4"), 2, "model.lora", "pretrained")
