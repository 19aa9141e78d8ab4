"""Paths on the command line: ``~`` in every option, and a folder of its own for every run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, refused, write_experiment


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and a current folder elsewhere."""
    folder, here = tmp_path / "home", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("run", "~/none"),
        ("run", "EXPERIMENT", "--cluster=~/none"),
        ("plan", "~/none"),
        ("sweep", "~/none"),
        ("sweep", "EXPERIMENT", "--with=~/none"),
        ("resume", "~/none"),
        ("report", "~/none"),
        ("report", "~/one", "~/none"),
        ("data", "show", "mine", "--path=~/none"),
        ("data", "show", "woz.en", "--raw=~/none"),
    ],
    ids=" ".join,
)
def test_a_path_of_a_command_may_begin_with_a_tilde(
    command: InThisProcess, home: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    experiment = write_experiment(tmp_path)
    if "~/one" in words:
        (home / "one").mkdir()
        words = ("report", "~/none", "~/one")
    result = command(*(experiment if word == "EXPERIMENT" else word for word in words))
    assert result.returncode != 0 and str(home / "none") in result.stderr
    assert list(Path.cwd().iterdir()) == []


def test_a_run_directory_may_begin_with_a_tilde(
    command: InThisProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    monkeypatch.setattr("ray_l4.run.execute.run", lambda config, profile, folder, *rest: folders.append(folder))
    result = command("run", write_experiment(tmp_path), "--cluster", IN_PROCESS, "--run-dir=~/runs/x")
    assert result.returncode == 0, result.stderr
    assert folders == [home / "runs" / "x"]


def test_runs_that_start_in_one_second_have_folders_of_their_own(
    command: InThisProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def begin(config: object, profile: object, folder: Path, *rest: object) -> None:
        folders.append(folder)
        assert not any(folder.iterdir()), "the folder is there, and no other run has it"
        (folder / "config.yaml").touch()

    monkeypatch.setattr("ray_l4.run.execute.run", begin)
    monkeypatch.setattr(time, "strftime", lambda *_: "20300101-000000")
    path = write_experiment(tmp_path, name="a/b " + "長" * 120)
    for _ in range(2):
        assert command("run", path, "--cluster", IN_PROCESS).returncode == 0
    assert len(set(folders)) == 2 and all(folder.parent == Path("runs") for folder in folders)


def test_a_run_that_cannot_start_leaves_no_folder(command: InThisProcess, home: Path, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, stream=[{"name": "mine", "path": "none", "metric": "em"}])
    refused(command("run", path, "--cluster", IN_PROCESS), 3, "no folder")
    assert not any(Path("runs").iterdir())


@pytest.mark.parametrize("name", ["a|b", "a\nb", "", "\u200b"], ids=ascii)
def test_a_task_name_that_cannot_be_shown_is_refused(command: InThisProcess, tmp_path: Path, name: str) -> None:
    path = write_experiment(tmp_path, stream=[{"name": name, "path": "none", "metric": "em"}])
    refused(command("run", path, "--cluster", IN_PROCESS), 2, "experiment.yaml:", "stream.0.name", "a task")


def test_a_profile_of_the_project_is_found_by_its_name_from_any_folder(
    command: InThisProcess, home: Path, tmp_path: Path
) -> None:
    path = write_experiment(tmp_path)
    for name in ("in_process", "in_process.yaml"):
        shown = command("run", path, "--cluster", name, "--dry-run")
        assert shown.returncode == 0 and "name: in_process" in shown.stdout
    refused(command("run", path, "--cluster", "laptopp", "--dry-run"), 2, "--cluster laptopp", "'laptop'", "two_gpus")
    refused(command("run", path, "--cluster", "a/laptop", "--dry-run"), 2, "a/laptop: no such file")
    Path("laptop").write_text("name: mine\n", encoding="utf-8")
    assert "name: mine" in command("run", path, "--cluster", "laptop", "--dry-run").stdout, "a file comes first"


def test_overlays_of_a_run(command: InThisProcess, home: Path, tmp_path: Path) -> None:
    """Their values replace those of the file, --set replaces theirs, and messages name where a value is from."""
    path, one, two = write_experiment(tmp_path), tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("training: {epochs: 5, batch_size: 3}\n", encoding="utf-8")
    two.write_text("training: {epochs: 6}\nname: other\n", encoding="utf-8")
    options = ("--with", one, "--with", two, "--set", "name=third", "--cluster", "in_process", "--dry-run")
    shown = command("run", path, *options)
    assert shown.returncode == 0, shown.stderr
    assert "epochs: 6" in shown.stdout and "batch_size: 3" in shown.stdout and "name: third" in shown.stdout
    one.write_text("training: {epochz: 5}\n", encoding="utf-8")
    refused(command("run", path, *options), 2, "one.yaml:1: training.epochz", "'epochs'")
    one.write_text("sweep: {seeds: 3}\n", encoding="utf-8")
    refused(command("run", path, *options), 2, "one.yaml:1: sweep", "ray-l4 sweep")
