"""Mistakes of the user: each ends in one clear message and a non-zero exit status, and nothing is lost."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_l4.cli.main import app
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, refused, write_experiment

CONFIG, DATA, MODEL, RUN_DIRECTORY, CLUSTER = 2, 3, 4, 5, 6
RunWith = Callable[..., subprocess.CompletedProcess[str]]


def own_task(folder: Path, name: str, train: str | bytes, test: str | None = None) -> dict[str, object]:
    """Write the JSONL files of a custom task, and return its entry in the stream."""
    data = folder / name
    data.mkdir()
    content = train if isinstance(train, bytes) else train.encode()
    (data / "train.jsonl").write_bytes(content)
    good = '{"context": "one two", "question": "which", "answer": "two", "id": "t1"}\n'
    (data / "test.jsonl").write_text(test or good, encoding="utf-8")
    return {"name": name, "path": str(data), "metric": "em", "train": "all", "test": "all", "columns": {"id": "id"}}


@pytest.fixture
def run_with(command: InThisProcess, tmp_path: Path) -> RunWith:
    """Function that runs an experiment without Ray, into ``tmp_path``/run."""

    def run(**changes: object) -> subprocess.CompletedProcess[str]:
        path = write_experiment(tmp_path, **changes)
        return command("run", path, "--cluster", IN_PROCESS, "--run-dir", tmp_path / "run")

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ["run", write_experiment(folder), "--cluster", IN_PROCESS, "--run-dir", folder / "run"]
    assert CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False).exit_code == 0
    return folder / "run"


ROW = '{"context": "one two three", "question": "which", "answer": "two", "id": "%s"}\n'


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"optim": {"weight_deacy": 1}}, CONFIG, ["experiment.yaml", "optim.weight_deacy", "weight_decay"]),
        ({"metod": "l4"}, CONFIG, ["metod", "'method'"]),
        ({"method": "l5"}, CONFIG, ["unknown method 'l5'", "'l4'"]),
        ({"stream": ["mini.wozz"]}, CONFIG, ["mini.wozz", "mini.woz"]),
        ({"stream": ["mini.woz", {"name": "mini.woz", "metric": "em"}]}, CONFIG, ["mini.woz", "another metric"]),
        ({"stream": []}, CONFIG, ["stream"]),
        ({"stream": ["woz.en"], "data": {"raw": "nowhere"}}, DATA, ["nowhere", "woz"]),
        ({"model": {"name": "no/such/model"}}, MODEL, ["no/such/model"]),
        ({"model": {}}, CONFIG, ["model", "name", "from_scratch"]),
        ({"training": {"epochs": 0}}, CONFIG, ["training.epochs"]),
        ({"stream": [{"name": "mini.woz", "train": -3}]}, CONFIG, ["train"]),
    ],
)
def test_mistakes_in_the_experiment(
    run_with: RunWith, tmp_path: Path, changes: dict[str, object], code: int, words: list[str]
) -> None:
    refused(run_with(**changes), code, *words)
    assert not (tmp_path / "run").exists(), "no folder is made for a run that cannot start"


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("", ["train.jsonl", "empty"]),
        ('{"context": "a", "question": "b", "anser": "c", "id": "1"}\n', ["answer", "anser"]),
        (ROW % "1" + ROW % "1", ["1", "train.jsonl"]),
        (b'{"context": "caf\xe9", "question": "b", "answer": "c", "id": "1"}\n', ["UTF-8", "train.jsonl"]),
        ("not json\n", ["train.jsonl", "1"]),
        (ROW % "1" + ROW.replace("one two three", "x").replace("which", "which " * 200) % "2", ["do not fit", "2:"]),
    ],
    ids=["empty", "missing column", "duplicate ids", "not UTF-8", "not JSON", "too long"],
)
def test_mistakes_in_custom_data(run_with: RunWith, tmp_path: Path, train: str | bytes, words: list[str]) -> None:
    refused(run_with(stream=[own_task(tmp_path, "mine", train)]), DATA, *words)
    assert not (tmp_path / "run").exists()


def test_a_missing_file(command: InThisProcess, tmp_path: Path) -> None:
    refused(command("run", tmp_path / "none.yaml"), CONFIG, "none.yaml")


def test_more_peers_than_fit_on_any_node(command: InThisProcess, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, peers={"count": 500})
    result = command("run", path, "--run-dir", tmp_path / "run")
    refused(result, CLUSTER, "500 students with 1 CPU", "no room", "peers.count")
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_no_node_has(command: InThisProcess, tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    result = command("run", path, "--set", "cluster.students.gpus=1", "--set", "cluster.ray.num_gpus=0", "--dry-run")
    refused(result, CLUSTER, "1 GPU each", "0 GPU")


def test_a_cluster_that_cannot_be_reached(command: InThisProcess, tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    result = command("run", path, "--set", "cluster.ray.address=127.0.0.1:1", "--run-dir", tmp_path / "run")
    refused(result, CLUSTER, "127.0.0.1:1")


def test_a_run_directory_that_is_taken(run_with: RunWith, tmp_path: Path) -> None:
    taken = tmp_path / "run"
    taken.mkdir()
    (taken / "thesis.txt").write_text("precious", encoding="utf-8")
    refused(run_with(), RUN_DIRECTORY, "not empty", "--run-dir")
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def test_a_run_directory_that_another_process_uses(command: InThisProcess, tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with (tmp_path / "run" / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(command("resume", tmp_path / "run"), RUN_DIRECTORY, "in use", "process")


def test_resume_of_what_is_no_run_or_has_finished(command: InThisProcess, tmp_path: Path, finished: Path) -> None:
    refused(command("resume", tmp_path), RUN_DIRECTORY, "not a run directory")
    refused(command("resume", finished), RUN_DIRECTORY, "has finished", "ray-l4 report")


def test_evaluating_a_folder_without_a_checkpoint(command: InThisProcess, tmp_path: Path) -> None:
    refused(command("evaluate", tmp_path, "--task", "mini.woz"), MODEL, str(tmp_path))
    refused(command("generate", tmp_path, "--task", "mini.woz"), MODEL, str(tmp_path))


@pytest.mark.parametrize("name", ["report", "table", "rescore", "resume"])
def test_what_is_no_run_but_inside_one(command: InThisProcess, tmp_path: Path, finished: Path, name: str) -> None:
    refused(command(name, tmp_path), RUN_DIRECTORY, "not a run directory")
    refused(command(name, tmp_path / "none"), RUN_DIRECTORY, "no such folder")
    for inside in ("checkpoints", "config.yaml"):
        refused(command(name, finished / inside), RUN_DIRECTORY, f"part of the run {finished}")


@pytest.mark.parametrize(("file", "key"), [("manifest.json", "command"), ("summary.json", "stream")])
def test_a_record_of_a_run_without_a_key(
    command: InThisProcess, tmp_path: Path, finished: Path, file: str, key: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / file).write_text("{}", encoding="utf-8")
    refused(command("report", tmp_path / "run"), RUN_DIRECTORY, str(tmp_path / "run" / file), f"no '{key}'", "damaged")


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "evaluation.validation=nowhere"), "evaluation.validation: no file or folder"),
        (("--set", "evaluation.patience=2"), "patience counts epochs"),
        (("--track", "wanbd"), "--track wanbd: unknown tracker"),
    ],
    ids=["validation", "patience", "tracker"],
)
def test_what_cannot_be_validated_or_tracked_is_refused_before_anything_starts(
    command: InThisProcess, tmp_path: Path, arguments: tuple[str, ...], message: str, dry_run: bool
) -> None:
    flags = ("--dry-run",) if dry_run else ("--run-dir", tmp_path / "run")
    refused(command("run", write_experiment(tmp_path), "--cluster", IN_PROCESS, *flags, *arguments), CONFIG, message)
    assert not (tmp_path / "run").exists()
