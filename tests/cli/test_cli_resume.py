"""What ``resume`` refuses or warns of, and what a run leaves for its user: a log, and what to do next."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path

import pytest

from ray_l4.store.run_directory import RunDirectory, RunState, read_json
from ray_l4.store.sealed import write_record
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, ray_l4, refused, write_experiment

pytestmark = pytest.mark.end_to_end

RUN_DIRECTORY = 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("a run")
    result = ray_l4("run", write_experiment(folder), "--run-dir", folder / "run", "--cluster", IN_PROCESS)
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout, encoding="utf-8")
    return RunDirectory.open(folder / "run")


@pytest.fixture
def unfinished(finished: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the run that has only learned its first task."""
    shutil.copytree(finished.path, tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    (run.path / "summary.json").unlink()
    run.save_state(RunState(stages_done=1))
    return run


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_log_holds_what_the_command_printed(finished: RunDirectory) -> None:
    first, *lines = finished.log("command").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# 20") and "ray-l4 run " in first
    assert lines == (finished.path.parent / "stdout").read_text(encoding="utf-8").splitlines()
    assert any("student 1 after mini.rest" in line for line in lines)


def test_replay_of_which_nothing_is_valid_draws_a_warning_everywhere(finished: RunDirectory) -> None:
    warning = "0 of 6 generated examples of mini.woz are valid (no answer token: 6), so nothing of it is replayed"
    for text in (
        (finished.path.parent / "stdout").read_text(encoding="utf-8"),
        finished.log("command").read_text(encoding="utf-8"),
        finished.log("coordinator").read_text(encoding="utf-8"),
        (finished.path / "report.md").read_text(encoding="utf-8"),
    ):
        assert warning in text


def test_a_command_that_died_at_the_very_end_leaves_its_report_to_resume(
    finished: RunDirectory, command: InThisProcess, tmp_path: Path
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    report, summary = tmp_path / "run" / "report.md", tmp_path / "run" / "summary.json"
    expected = report.read_text(encoding="utf-8"), summary.read_bytes()
    report.unlink()
    result = command("resume", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "ray-l4 evaluate " in result.stdout and "learning" not in result.stdout
    assert (report.read_text(encoding="utf-8"), summary.read_bytes()) == expected
    refused(command("resume", tmp_path / "run"), RUN_DIRECTORY, "has finished")


def test_the_end_of_a_run_prints_commands_that_work(
    finished: RunDirectory, command: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = (finished.path.parent / "stdout").read_text(encoding="utf-8").partition("\nnext:\n")[2].splitlines()
    words = [line.partition("   #")[0].split("ray-l4 ")[1] for line in printed]
    assert [own.split()[0] for own in words] == ["report", "evaluate", "ask"]
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nothing is asked
    for own in words:
        result = command(*shlex.split(own))
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["--help", "it's one"])
def test_they_work_for_any_name_of_a_task(
    command: InThisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for split in ("train", "test"):
        text = json.dumps({"context": "a b", "question": "which", "answer": "a"}) + "\n"
        (tmp_path / f"{split}.jsonl").write_text(text * 2, encoding="utf-8")
    own = {"name": name, "path": str(tmp_path), "metric": "em"}
    experiment = write_experiment(tmp_path, method="finetune", stream=[own])
    printed = command("run", experiment, "--run-dir", tmp_path / "run", "--cluster", IN_PROCESS).stdout
    asks = next(line for line in printed.splitlines() if "ray-l4 ask" in line)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nothing is asked
    result = command(*shlex.split(asks.partition("   #")[0])[1:])
    assert result.returncode == 0 and f"task {name}" in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("method: l4", "method: lamol", 'method was "l4", now "lamol"'),
        ("lr: 0.002", "lr: 0.5", "optim.lr was 0.002, now 0.5"),
        ("train: 24", "train: 23", "stream.0.train was 24, now 23"),
    ],
)
def test_an_edited_experiment_is_refused_with_the_difference(
    command: InThisProcess, unfinished: RunDirectory, old: str, new: str, difference: str
) -> None:
    edit(unfinished.path / "config.yaml", old, new)
    refused(command("resume", unfinished.path), RUN_DIRECTORY, f"{unfinished.path}/config.yaml", difference, "undo")
    assert f"error: {unfinished.path}/config.yaml" in unfinished.log("command").read_text(encoding="utf-8")


def test_comments_another_profile_and_other_versions_do_not_stop_it(
    command: InThisProcess, finished: RunDirectory, unfinished: RunDirectory
) -> None:
    edit(unfinished.path / "config.yaml", "method: l4", "# mine\nmethod:   'l4'  # as published")
    edit(unfinished.path / "cluster.yaml", "step: ", "step: 1")
    manifest = read_json(unfinished.path / "manifest.json")
    torch = manifest["versions"]["torch"]
    write_record(unfinished.path / "manifest.json", manifest | {"versions": manifest["versions"] | {"torch": "2.0.1"}})
    result = command("resume", unfinished.path)
    assert result.returncode == 0, result.stderr
    warning = f"warning: the run began with other versions: torch 2.0.1, now {torch}."
    assert warning in result.stdout
    log = unfinished.log("command").read_text(encoding="utf-8")
    assert warning in log and f"ray-l4 resume {unfinished.path}" in log
    assert unfinished.summary()["score_matrix"] == finished.summary()["score_matrix"]


def test_a_run_of_an_early_version_is_resumed(command: InThisProcess, unfinished: RunDirectory) -> None:
    path = unfinished.path / "manifest.json"
    manifest = read_json(path)
    del manifest["experiment"]
    path.write_text(json.dumps(manifest))  # without a checksum
    assert command("resume", unfinished.path).returncode == 0


@pytest.mark.parametrize(
    "damage",
    [
        *("{}", "[]", "null", {"data_fingerprint": 5}, {"versions": []}, {"versions": "2.0"}, {"versions": None}),
        *({"versions": {"torch": None}}, {"python": 3}),
    ],
    ids=json.dumps,
)
def test_a_damaged_manifest_is_named(
    command: InThisProcess, unfinished: RunDirectory, damage: str | dict[str, object]
) -> None:
    manifest = unfinished.path / "manifest.json"
    whole = dict(read_json(manifest))
    manifest.write_text(damage if isinstance(damage, str) else json.dumps(whole | damage), encoding="utf-8")
    refused(command("resume", unfinished.path), RUN_DIRECTORY, f"{manifest}: damaged", "Restore it")


def test_a_changed_byte_of_a_record_is_named(command: InThisProcess, unfinished: RunDirectory) -> None:
    edit(unfinished.path / "state.json", '"stages_done": 1', '"stages_done": 0')
    refused(command("resume", unfinished.path), RUN_DIRECTORY, f"{unfinished.path}/state.json: damaged", "Restore it")


def test_of_damaged_weights_the_ones_before_are_used(
    command: InThisProcess, finished: RunDirectory, unfinished: RunDirectory
) -> None:
    weights = unfinished.checkpoint(0, 1, 1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    result = command("resume", unfinished.path)
    assert result.returncode == 0, result.stderr
    assert f"warning: {weights} is damaged" in result.stdout and "The run goes back to its beginning" in result.stdout
    assert unfinished.summary()["score_matrix"] == finished.summary()["score_matrix"]
    assert weights.read_bytes() == (finished.checkpoint(0, 1, 1) / "model.safetensors").read_bytes()


def test_an_error_that_is_no_defect_ends_the_log(
    command: InThisProcess, unfinished: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "steps.parquet")

    monkeypatch.setattr("ray_l4.run.epoch_figures.write_steps", full)
    refused(command("resume", unfinished.path), 1, "steps.parquet: cannot be written, because the disk is full")
    assert "error: " in unfinished.log("command").read_text(encoding="utf-8").splitlines()[-1]
