"""``extend``: further tasks, corrections of old ones, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ray_l4.store.run_directory import RunDirectory
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, ray_l4, refused, write_experiment

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run")
    result = ray_l4("run", write_experiment(folder), "--run-dir", folder / "run", "--cluster", IN_PROCESS)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run on mini.woz and mini.rest."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def write_task(folder: Path, splits: dict[str, int], word: str = "right") -> Path:
    """A folder of examples of a user."""
    folder.mkdir()
    for split, count in splits.items():
        rows = [{"context": f"case {n}", "question": "how is it ?", "answer": f"{word} {n % 2}"} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_new_task_corrections_of_an_old_one_and_a_file_with_both(
    run: Path, tmp_path: Path, command: InThisProcess
) -> None:
    new = write_task(tmp_path / "new", {"train": 12, "test": 4})
    corrections = write_task(tmp_path / "corrections", {"train": 8})
    result = command(
        "extend", run, f"mine={new}", f"mini.woz={corrections}", "--metric", "em", "--set", "optim.lr=1e-3"
    )
    assert result.returncode == 0, result.stderr
    assert "mine" in result.stdout and "next:" in result.stdout
    summary = RunDirectory.open(run).summary()
    assert summary["stages"] == ["mini.woz", "mini.rest", "mine", "mini.woz (2)"]
    assert summary["stream"] == ["mini.woz", "mini.rest", "mine"]
    stream = RunDirectory.open(run).experiment().stream
    assert [item.settings.optim.lr for item in stream] == [None, None, 1e-3, 1e-3]
    assert RunDirectory.open(run).manifest()["training_examples"]["mini.woz (2)"] == 8

    file = tmp_path / "more.yaml"
    items = [
        {"name": "mine", "path": "new", "settings": {"training": {"epochs": 2}}},
        {"name": "mini.sql", "train": 8, "test": 4},
    ]
    file.write_text(yaml.safe_dump({"stream": items}))
    result = command("extend", run, file, "--set", "training.batch_size=4")
    assert result.returncode == 0, result.stderr
    run_directory = RunDirectory.open(run)
    assert run_directory.summary()["stages"][4:] == ["mine (2)", "mini.sql"]
    settings = [item.settings.training for item in run_directory.experiment().stream[4:]]
    assert [(own.epochs, own.batch_size) for own in settings] == [(2, 4), (None, 4)]
    report = command("report", run)
    assert report.returncode == 0, report.stderr
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "mini.woz (2)" in page and "mine (2)" in page
    order = ["mini.woz", "mini.rest", "mine", "mini.woz (2)", "mine (2)", "mini.sql"]
    assert " -&gt; ".join(order) in page
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert "| mine (2)" in markdown and "before learning" in markdown
    resumed = command("resume", run)
    refused(resumed, 5, "this run has finished")
    figure = command("figure", run, "--kind", "scores", "--out", tmp_path / "scores.png")
    assert figure.returncode == 0, figure.stderr


def test_a_dry_run_changes_nothing(run: Path, command: InThisProcess) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    result = command("extend", run, "mini.sql", "mini.woz", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "stage 2: mini.sql, 600 training examples, 1 epoch; replays mini.woz, mini.rest" in result.stdout
    assert "stage 3: mini.woz (2)" in result.stdout
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_what_is_wrong_is_said_and_loses_nothing(run: Path, tmp_path: Path, command: InThisProcess) -> None:
    own = write_task(tmp_path / "own", {"train": 8, "test": 4})
    fragment = tmp_path / "whole.yaml"
    fragment.write_text("stream: [mini.sql]\nseed: 3\n")
    broken = tmp_path / "broken.yaml"
    broken.write_text("stream: [{name: mini.sql, trian: 3}]\n")
    refused(command("extend", tmp_path / "nowhere", "mini.sql"), 5, "not a run directory")
    refused(command("extend", run, "mini.sqll"), 2, "Unknown task 'mini.sqll'", "mini.sql")
    refused(command("extend", run, f"own={own}"), 2, "set its metric")
    refused(command("extend", run, f"own={tmp_path / 'x'}", "--metric", "em"), 3, str(tmp_path / "x"))
    refused(command("extend", run, "mini.sql", "--set", "model.name=gpt2"), 2, "is the same in all stages", "optim.lr")
    refused(command("extend", run, "mini.sql", "--set", "training.epochs=no"), 2, "training.epochs")
    refused(command("extend", run, fragment), 2, "has 'seed' beside 'stream'")
    refused(command("extend", run, broken), 2, f"{broken}:1", "trian", "train")
    refused(command("extend", run, tmp_path / "gone.yaml"), 2, "no such file")
    assert RunDirectory.open(run).is_complete()
