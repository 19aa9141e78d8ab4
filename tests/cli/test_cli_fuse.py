"""``fuse``: the peers of a run as one model, and what can be done with it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from ray_l4.cli.fuse import _experiment
from ray_l4.serve.choice import learned_tasks, served_checkpoint
from ray_l4.store.run_directory import RunDirectory
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, ray_l4, refused, write_experiment
from tests.run import run_fixtures as small

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run")
    file = write_experiment(folder, peers={"count": 3, "topology": "ring"})
    result = ray_l4("run", file, "--run-dir", folder / "run", "--cluster", IN_PROCESS)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_a_dry_run_says_who_teaches_and_writes_nothing(run: Path, command: InThisProcess) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    result = command("fuse", run, "--dry-run", "--set", "training.epochs=2", "--run-dir", run.parent / "dry")
    assert result.returncode == 0, result.stderr
    assert f"{run}: students 0, 1, 2 teach one, which begins with the weights of student 0" in result.stdout
    assert "examples: 24 of mini.rest, and " in result.stdout and "2 epochs" in result.stdout
    assert "distillation: weight 1, temperature 2, of all examples" in result.stdout
    assert "placement: 4 students" in result.stdout
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before
    assert not (run.parent / "dry").exists()


def test_one_model_is_made_shown_and_used(run: Path, tmp_path: Path, command: InThisProcess) -> None:
    result = command("fuse", run, "--set", "training.epochs=2", "--set", "distillation.weight=0.5")
    assert result.returncode == 0, result.stderr
    shown = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("| ")]
    assert shown == ["model", "------", "peer 0", "peer 1", "peer 2", "fused"]
    fused = run / "fused"
    named = shlex.quote(str(fused))
    assert f"ray-l4 report {named}" in result.stdout and f"ray-l4 serve {named}" in result.stdout
    directory = RunDirectory.open(fused)
    config = directory.experiment()
    assert (config.training.epochs, config.distillation.weight, config.distillation.examples) == (2, 0.5, "all")
    assert config.teachers.run == run.absolute()
    served = served_checkpoint(directory)
    assert (served.stage, served.student) == (0, 0)
    assert learned_tasks(config, 0) == ("mini.woz", "mini.rest"), "a service answers to all tasks"
    evaluated = command("evaluate", fused)
    assert evaluated.returncode == 0 and "mini.woz" in evaluated.stdout, evaluated.stderr
    asked = command("ask", fused, "--task", "mini.rest", "--context", "a b", "--question", "what ?")
    assert asked.returncode == 0, asked.stderr
    report = command("report", fused)
    assert report.returncode == 0, report.stderr
    assert "Replay" in (fused / "report.html").read_text(encoding="utf-8")
    both = command("report", run, fused, "--out", tmp_path / "both.html")
    assert both.returncode == 0 and "| fuse" in both.stdout, both.stderr
    refused(command("fuse", run), 5, "fused: already exists", f"ray-l4 resume {fused}")
    refused(command("fuse", fused, "--run-dir", run.parent / "twice"), 2, "does not learn one task after another")
    refused(command("extend", fused, "mini.sql"), 2, "cannot be extended")


def test_a_fused_run_that_was_cut_off_is_resumed(run: Path, command: InThisProcess) -> None:
    folder = run.parent / "cut off"
    result = command("fuse", run, "--run-dir", folder)
    assert result.returncode == 0, result.stderr
    before = RunDirectory.open(folder).summary()
    checkpoint = next((folder / "checkpoints").rglob("model.safetensors")).read_bytes()
    for name in ("summary.json", "report.md"):
        (folder / name).unlink()
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    assert state["stages_done"] == 1
    directory = RunDirectory.open(folder)
    directory.save_state(directory.state().model_copy(update={"stages_done": 0}))
    resumed = command("resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "| fused" in resumed.stdout
    assert RunDirectory.open(folder).summary()["score_matrix"] == before["score_matrix"]
    assert next((folder / "checkpoints").rglob("model.safetensors")).read_bytes() == checkpoint


def test_what_is_wrong_is_said(run: Path, tmp_path: Path, command: InThisProcess) -> None:
    new = ("--run-dir", tmp_path / "new")
    refused(command("fuse", tmp_path / "nowhere"), 5, "not a run directory")
    refused(command("fuse", run, *new, "--set", "model.name=gpt2"), 2, "is that of the run whose peers are fused")
    refused(command("fuse", run, *new, "--set", "training.epochs=no"), 2, "training.epochs")
    refused(command("fuse", run, *new, "--set", "teachers.students=[0]"), 2, "at least two different students")
    refused(command("fuse", run, *new, "--set", "teachers.students=[0,3]"), 2, "has no student 3")
    assert not (tmp_path / "new").exists()


def test_the_settings_are_those_of_the_students_that_were_chosen(tmp_path: Path) -> None:
    each = [{"lr": 1e-2}, {"lr": 2e-2}, {"lr": 3e-2}]
    config = small.quick("l4", peers={"count": 3, "init": "own", "each": each})
    run, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    two, others = (_experiment(run, [0, 1, 2], [f"teachers.students={asked}"]) for asked in ("[1,2]", "[2,1,0]"))
    assert [own.lr for own in two.peers.each] == [2e-2, 2e-2, 3e-2], "the student's, and its teachers'"
    assert [own.lr for own in others.peers.each] == [3e-2, 3e-2, 2e-2, 1e-2]


def test_a_missing_checkpoint_is_noted(run: Path, tmp_path: Path, command: InThisProcess) -> None:
    folder = RunDirectory.open(run).checkpoint(1, 1, 1)
    folder.rename(tmp_path / "elsewhere")
    try:
        result = command("fuse", run, "--run-dir", tmp_path / "new", "--dry-run")
    finally:
        (tmp_path / "elsewhere").rename(folder)
    assert result.returncode == 0, result.stderr
    assert "note: student 1 is left out:" in result.stderr and "students 0, 2 teach one" in result.stdout
