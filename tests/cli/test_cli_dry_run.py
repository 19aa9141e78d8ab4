"""``run --dry-run`` refuses what the run refuses, with the same message, as far as settings and files can tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, refused, write_experiment

OWN = {"name": "mine", "path": "own", "metric": "em"}
ROW = '{"context": "c", "question": "q", "answer": "a"}\n'


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The files of a custom task."""
    folder = tmp_path / "own"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(ROW * 4, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"stream": [OWN | {"metric": "accuracy"}]}, 2, ["'mine'", "unknown metric 'accuracy'"]),
        ({"stream": [{"name": "mine", "path": "own"}]}, 2, ["set its metric"]),
        ({"stream": [OWN | {"metric": "lfem"}]}, 3, ["example '0'", "'lfem' needs meta"]),
        ({"stream": ["mini.wozz"]}, 2, ["mini.wozz", "'mini.woz'"]),
        ({"stream": [OWN | {"path": "none"}]}, 3, ["no folder", "none"]),
        ({"stream": [OWN | {"splits": {"test": "holdout"}}]}, 3, ["no test data", "holdout.jsonl"]),
        ({"stream": [OWN | {"columns": {"answer": "label"}}]}, 3, ["no column 'label'"]),
        ({"stream": [OWN | {"train": 5}]}, 3, ["5", "4"]),
        ({"stream": ["woz.en"], "data": {"raw": "nowhere"}}, 3, ["woz.en", "nowhere"]),
        ({"stream": ["woz.en"]}, 2, ["woz.en", "data.raw"]),
        ({"model": {"name": "~/no-model"}}, 4, ["no-model", "no folder"]),
        ({"model": {"name": "own"}}, 4, ["own", "holds no model"]),
        ({"model": {"name": "./no-model"}}, 4, ["no folder", "FOLDER/no-model"]),
        ({"model": {"name": "models/of/mine"}}, 4, ["no folder", "FOLDER/models/of/mine"]),
        ({"model": {"name": "experiment.yaml"}}, 4, ["FOLDER/experiment.yaml", "is a file"]),
        ({"stream": [OWN | {"name": "ans"}]}, 2, ["'ans'", "__ans__"]),
        ({"stream": [OWN | {"name": "a\u00a0b"}]}, 2, ["single, ordinary spaces"]),
        ({"stream": [OWN], "evaluation": {"validation": "dev"}}, 3, ["no dev data"]),
        ({"evaluation": {"general": "none.txt"}}, 3, ["evaluation.general: no file", "FOLDER/none.txt"]),
        ({"evaluation": {"general": "own/train.jsonl"}}, 3, ["FOLDER/own/train.jsonl", "'context', 'question'"]),
        ({"evaluation": {"general": "own"}}, 3, ["FOLDER/own is a folder", ".parquet"]),
        ({"stream": [{"name": "mine", "dataset": "foo bar", "metric": "em"}]}, 2, ["OWNER/NAME", "'foo bar'"]),
        ({"model": {"from_scratch": {"positions": 64}, "max_length": 65}}, 4, ["65 tokens", "64 positions"]),
        ({"method": "l2kd-word", "teachers": {"run": "none"}}, 5, ["none", "not a run directory"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_dry_run_refuses_what_the_run_refuses(
    command: InThisProcess,
    tmp_path: Path,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    code: int,
    words: list[str],
) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    arguments = ("run", write_experiment(tmp_path, **changes), "--cluster", IN_PROCESS, "--run-dir", tmp_path / "run")
    dry, wet = command(*arguments, "--dry-run"), command(*arguments)
    refused(dry, code, *(word.replace("FOLDER", str(tmp_path)) for word in words))
    assert dry.stderr == wet.stderr and dry.returncode == wet.returncode
    assert not (tmp_path / "run").exists()


def test_a_dry_run_accepts_what_the_run_accepts(command: InThisProcess, tmp_path: Path, own: Path) -> None:
    path = write_experiment(tmp_path, stream=[OWN, "mini.rest"])
    result = command("run", path, "--cluster", IN_PROCESS, "--run-dir", tmp_path / "run", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken(command: InThisProcess, tmp_path: Path) -> None:
    result = command("run", write_experiment(tmp_path), "--cluster", IN_PROCESS, "--run-dir", tmp_path, "--dry-run")
    refused(result, 5, "not empty")


def test_ranks_that_the_run_refuses(command: InThisProcess, tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("students: {shards_per_student: 9}\nray: {num_cpus: 40}\n", encoding="utf-8")
    result = command("run", write_experiment(tmp_path), "--cluster", profile, "--dry-run")
    refused(result, 2, "9 ranks share a batch of 8")


def test_a_dry_sweep_refuses_own_data_that_is_missing(command: InThisProcess, tmp_path: Path) -> None:
    path = write_experiment(tmp_path, stream=[OWN], sweep={"seeds": 2})
    refused(command("sweep", path, "--cluster", IN_PROCESS, "--dry-run"), 3, "no folder")


def test_a_file_or_a_folder_of_something_else_as_run_directory(command: InThisProcess, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path)
    for folder in (experiment, tmp_path):
        result = command("run", experiment, "--cluster", IN_PROCESS, "--run-dir", folder, "--dry-run")
        refused(result, 5, "is a file" if folder == experiment else "is not empty")
        assert "resume" not in result.stderr, "it is no run"


def test_a_run_directory_as_model_names_a_checkpoint(command: InThisProcess, tmp_path: Path) -> None:
    run = tmp_path / "earlier"
    model = run / "checkpoints" / "stage-0" / "epoch-1" / "student-0"
    model.mkdir(parents=True)
    for path in (model / "config.json", run / "config.yaml"):
        path.write_text("{}", encoding="utf-8")
    experiment = write_experiment(tmp_path, model={"name": str(run)})
    arguments = ("run", experiment, "--cluster", IN_PROCESS, "--run-dir", tmp_path / "run")
    for result in (command(*arguments), command(*arguments, "--dry-run")):
        refused(result, 4, "is a run directory", str(model))


def test_a_run_directory_as_experiment_names_its_file(command: InThisProcess, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}", encoding="utf-8")
    refused(command("run", tmp_path), 2, f"{tmp_path}: is a folder", f"Did you mean {tmp_path / 'config.yaml'}?")
    refused(command("plan", tmp_path / "config.yaml", "--with", tmp_path), 2, f"{tmp_path}: is a folder")


def test_a_wrong_option_is_named_in_words(command: InThisProcess, tmp_path: Path) -> None:
    both = command("data", "show", "mine", "--dataset", "a/b", "--path", tmp_path)
    refused(both, 2, "only one of")
    assert "Value error" not in both.stderr and "error: : " not in both.stderr
    refused(command("data", "show", "mine", "--dataset", "foo bar"), 2, "OWNER/NAME", "'foo bar'")
