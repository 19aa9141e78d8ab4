"""The folder of a sweep: what is done, begun or new, what is recorded, and what is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_l4.errors import RunDirectoryError
from ray_l4.methods import resolved
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import RunDirectory
from ray_l4.sweep.folder import SweepFolder
from ray_l4.sweep.trials import Plan, Trial
from tests.run.run_fixtures import cluster, complete_run, experiment

SCORE = {"lamol": 40.0, "l4": 50.0}


def trial(method: str, seed: int = 0, **changes: Any) -> Trial:
    config = resolved(experiment(method=method, variant=method, seed=seed, **changes))
    return Trial(f"{method}_s{seed}", config, {"method": method})


def plan(*trials: Trial) -> Plan:
    return Plan("small", "A small sweep", None, 1.0, trials)


def begin(folder: SweepFolder, one: Trial) -> RunDirectory:
    return RunDirectory.create(folder.run(one), one.experiment, cluster("in_process"), {})


def finish(folder: SweepFolder, one: Trial) -> None:
    """A run directory with a summary, as far as a table reads it."""
    path = begin(folder, one).path
    score = SCORE[one.experiment.method] + one.experiment.seed
    figures = {name: {"0": score} for name in ("average_accuracy", "forgetting", "backward_transfer")}
    summary = {
        **figures,
        "variant": one.experiment.variant,
        "method": one.experiment.method,
        "stream": one.stream,
        "seed": one.experiment.seed,
        "peers": 1,
        "final": {"0": dict.fromkeys(one.stream, score)},
    }
    write_json(path / "summary.json", summary)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "sweep")


def test_new_begun_and_done(folder: SweepFolder) -> None:
    new, half, begun, done = (trial("l4", seed) for seed in range(4))
    folder.record(plan(new))
    folder.run(half).mkdir(parents=True)
    (folder.run(half) / "state.json").write_text("{}")  # killed before it was a run
    begin(folder, begun)
    finish(folder, done)
    states = folder.states(plan(new, half, begun, done))
    assert list(states.values()) == ["new", "new", "begun", "done"]
    folder.clear(half)
    assert not folder.run(half).exists()


def test_a_run_of_other_settings_is_not_taken_for_this_one(folder: SweepFolder) -> None:
    folder.record(plan(trial("l4")))
    finish(folder, trial("l4"))
    other = trial("l4", training={"epochs": 3, "batch_size": 8}, optim={"lr": 0.5})
    with pytest.raises(RunDirectoryError) as caught:
        folder.states(plan(other))
    message = str(caught.value)
    assert "l4_s0" in message
    assert "training.epochs is 2 there and 3 here" in message
    assert "and 1 more" not in message, "all that differ are named where they are few"


def test_what_is_no_run_is_not_removed(folder: SweepFolder) -> None:
    folder.record(plan(trial("l4")))
    folder.run(trial("l4")).mkdir()
    (folder.run(trial("l4")) / "thesis.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match=r"thesis\.txt"):
        folder.states(plan(trial("l4")))
    assert (folder.run(trial("l4")) / "thesis.txt").is_file()


def test_a_folder_that_holds_another_sweep_or_something_else(folder: SweepFolder, tmp_path: Path) -> None:
    folder.record(plan(trial("l4")))
    with pytest.raises(RunDirectoryError, match=r"holds another sweep: its scale is 1\.0, not 0\.1"):
        folder.states(replace(plan(trial("l4")), scale=0.1))
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match="no sweep"):
        SweepFolder(tmp_path / "papers").states(plan(trial("l4")))
    with pytest.raises(RunDirectoryError, match="no sweep"):
        SweepFolder(tmp_path / "papers" / "thesis.txt").states(plan(trial("l4")))


def test_the_record_grows(folder: SweepFolder) -> None:
    folder.record(plan(trial("l4")))
    folder.record(plan(trial("lamol"), trial("l4")))
    record = json.loads((folder.path / "sweep.json").read_text())
    assert {key: record[key] for key in ("name", "title", "scale", "table")} == {
        "name": "small",
        "title": "A small sweep",
        "scale": 1.0,
        "table": None,
    }
    assert [entry["folder"] for entry in record["trials"]] == ["l4_s0", "lamol_s0"]
    assert record["trials"][1] == {
        "folder": "lamol_s0",
        "variant": "lamol",
        "method": "lamol",
        "stream": ["mini.woz", "mini.sql"],
        "seed": 0,
        "settings": {"method": "lamol"},
    }


def test_the_table_holds_what_is_finished(folder: SweepFolder) -> None:
    trials = [trial(method, seed) for method in ("lamol", "l4") for seed in range(2)]
    folder.record(plan(*trials))
    assert folder.table() is None
    for one in trials[:3]:
        finish(folder, one)
    begin(folder, trials[3])
    text = folder.table()
    assert text is not None
    assert text.startswith("# A small sweep (1 of 4 trials missing)\n")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| l")}
    assert "40.5 ± 0.7" in rows["lamol"]
    assert "50.0" in rows["l4"]
    assert (folder.path / "table.md").read_text() == text


def test_a_run_that_was_killed_before_its_report_gets_one(folder: SweepFolder) -> None:
    small = {"stream": [{"name": "mini.woz", "train": 30, "test": 4}], "training": {"epochs": 1, "batch_size": 8}}
    done, begun = trial("finetune", **small), trial("lamol", **small)
    folder.record(plan(done, begun))
    run, _ = complete_run(done.experiment, cluster("in_process"), folder.run(done))
    begin(folder, begun)
    assert not (run.path / "report.md").exists()
    folder.complete_reports()
    report = (run.path / "report.md").read_text()
    assert report.startswith("# small: finetune on mini.woz, seed 0")
    assert not (folder.run(begun) / "report.md").exists()
    (run.path / "report.md").write_text("as it was")
    folder.complete_reports()
    assert (run.path / "report.md").read_text() == "as it was"


def test_what_a_run_is_told_of_its_sweep(folder: SweepFolder) -> None:
    folder.record(replace(plan(trial("l4")), title="A sweep, scaled", scale=0.1))
    assert folder.provenance() == {"sweep": "A sweep, scaled", "scale": 0.1}


def test_one_sweep_at_a_time(folder: SweepFolder) -> None:
    with folder.lock(), pytest.raises(RunDirectoryError, match="in use by process"), folder.lock():
        pass
    with folder.lock():
        pass
