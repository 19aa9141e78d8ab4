"""The commands of a user, from the first to the last, through the real entry point."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_l4.store.run_directory import RunDirectory, RunState, read_json
from ray_l4.store.sealed import write_record
from tests.cli.cli_fixtures import IN_PROCESS, QUICKSTART, ray_l4, write_experiment

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run of the README on Ray, only smaller."""
    folder = tmp_path_factory.mktemp("cli")
    result = ray_l4("run", write_experiment(folder), "--run-dir", folder / "run", "--set", "cluster.students.cpus=0.5")
    assert result.returncode == 0, result.stderr
    assert "(raylet)" not in result.stdout + result.stderr, "Ray has nothing to say to a user of a run that went well"
    assert "| l4 " in result.stdout, "the row of the run is the last thing printed"
    assert "student 1 after mini.rest" in result.stdout, "scores are shown as they come"
    return RunDirectory.open(folder / "run")


def test_the_run_directory_holds_all_there_is_to_keep(finished: RunDirectory) -> None:
    names = {path.name for path in finished.path.iterdir()}
    files = {"config.yaml", "cluster.yaml", "manifest.json", "state.json", "summary.json", "report.md"}
    assert files | {"tokenizer", "checkpoints", "replay", "steps", "scores", "predictions", "tensorboard"} <= names
    manifest = json.loads((finished.path / "manifest.json").read_text())
    assert "run" in manifest["command"]
    assert manifest["versions"]["torch"].startswith("2.")
    assert manifest["training_examples"] == {"mini.woz": 24, "mini.rest": 24}
    assert abs(datetime.now(UTC) - datetime.fromisoformat(manifest["started"])).total_seconds() < 3600
    model = AutoModelForCausalLM.from_pretrained(finished.checkpoint(1, 1, 0))
    assert finished.summary()["parameters"]["0"] == {"count": model.num_parameters(), "adapters": False}
    assert f"- parameters: {model.num_parameters():,}\n" in (finished.path / "report.md").read_text()


def test_checkpoints_are_hugging_face_folders(finished: RunDirectory) -> None:
    for stage in range(2):
        for student in range(2):
            folder = finished.checkpoint(stage, 1, student)
            model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
            assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            assert model.get_input_embeddings().num_embeddings == len(tokenizer)
            assert "__mini.rest__" in tokenizer.get_vocab()


def test_evaluate_gives_the_score_of_the_matrix(finished: RunDirectory) -> None:
    """The matrix is of the run's own six test examples; the command scores the first six of the same generator."""
    result = ray_l4("evaluate", finished.checkpoint(1, 1, 0), "--task", "mini.rest", "--limit", 6, "--show", 1)
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["examples"] == 6
    assert 0 <= values["avg_rouge"] <= 100
    assert "prediction:" in result.stderr


def test_generate_prints_pseudo_examples(finished: RunDirectory) -> None:
    arguments = ("generate", finished.checkpoint(1, 1, 0), "--task", "mini.woz", "-n", 5, "--max-length", 20)
    first, second = ray_l4(*arguments), ray_l4(*arguments)
    assert first.returncode == 0, first.stderr
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert len(lines) == 5
    assert all(line["valid"] in (True, False) for line in lines)
    assert first.stdout == second.stdout, "the seed decides"


def test_report_puts_runs_side_by_side(finished: RunDirectory, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, method="finetune")
    assert ray_l4("run", path, "--cluster", IN_PROCESS, "--run-dir", tmp_path / "run").returncode == 0
    result = ray_l4("report", finished.path, tmp_path / "run", "--out", tmp_path / "page.html")
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows if "---" not in row] == ["variant", "l4", "finetune"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "after learning" in report
    assert "method: finetune" in report


def test_resume_finishes_a_run_that_lost_its_second_task(finished: RunDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    run = RunDirectory.open(copy)
    expected = run.summary()
    for name in ("summary.json", "report.md"):
        (copy / name).unlink()
    shutil.rmtree(copy / "checkpoints" / "stage-1")
    for path in [*copy.glob("scores/stage-1.*"), *copy.glob("steps/stage-1.*"), copy / "replay" / "stage-1.parquet"]:
        path.unlink()
    run.save_state(RunState(stages_done=1))
    result = ray_l4("resume", copy, "--cluster", IN_PROCESS)
    assert result.returncode == 0, result.stderr
    assert "resumed after mini.woz (1 of 2 stages)" in result.stdout
    assert run.summary()["score_matrix"] == expected["score_matrix"]
    assert run.summary()["replay"] == expected["replay"]


def test_resume_refuses_data_that_has_changed(finished: RunDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    (copy / "summary.json").unlink()
    run, manifest = RunDirectory.open(copy), dict(read_json(copy / "manifest.json"))
    run.save_state(run.state().model_copy(update={"stages_done": 1}))
    last = list(manifest["data_fingerprint"])[-1]
    changed = {"data_fingerprint": manifest["data_fingerprint"] | {last: "other"}}
    write_record(copy / "manifest.json", manifest | changed)
    result = ray_l4("resume", copy, "--cluster", IN_PROCESS)
    assert result.returncode == 5
    assert f"the data of {last} or the tokeniser has changed since the run began" in result.stderr


def test_tensorboard_shows_losses_and_scores(finished: RunDirectory) -> None:
    events = EventAccumulator(str(finished.path / "tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"loss/student-0", "kd_qa/student-1", "score/mini.woz/student-0"} <= set(scalars)
    steps = [event.step for event in events.Scalars("loss/student-0")]
    assert steps == list(range(len({(r["stage"], r["step"]) for r in finished.step_figures()})))


def test_dry_run_prints_the_configuration_and_placement_and_makes_nothing(tmp_path: Path) -> None:
    result = ray_l4("run", QUICKSTART, "--dry-run", "--set", "seed=7", "--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "seed: 7" in result.stdout
    assert "placement: 2 students with 1 CPU" in result.stdout
    assert not (tmp_path / "run").exists()


def test_the_other_commands_answer() -> None:
    for arguments, words in (
        (["methods"], ["finetune", "lamol", "l4", "l4-eq12"]),
        (["data", "list"], ["woz.en", "mini.sql", "joint_goal_em"]),
        (["data", "show", "mini.sql", "-n", 1], ["mini.sql, train: 600 examples", "select"]),
        (["doctor"], ["Python", "torch", "CPU cores", "shared memory"]),
        (["--version"], ["ray-l4 "]),
    ):
        result = ray_l4(*arguments)
        assert result.returncode == 0, result.stderr
        for word in words:
            assert word in result.stdout, f"{arguments}: {result.stdout}"


def test_prepared_tasks_can_be_read_back_as_ones_own(tmp_path: Path) -> None:
    result = ray_l4("data", "prepare", "--out", tmp_path, "--task", "mini.rest")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "mini.rest" / "train.parquet").is_file()
    shown = ray_l4("data", "show", "mine", "--path", tmp_path / "mini.rest", "-n", 0)
    assert "mine, train: 600 examples" in shown.stdout, shown.stderr
