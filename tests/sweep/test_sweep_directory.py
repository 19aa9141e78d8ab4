"""The sweep directory: states of trials, the record, the table, and files it must not touch."""

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
from ray_l4.sweep.directory import SweepDirectory
from ray_l4.sweep.trials import Sweep, Trial
from tests.run.run_fixtures import cluster, complete_run, experiment

SCORE = {"lamol": 40.0, "l4": 50.0}


def trial(method: str, seed: int = 0, **changes: Any) -> Trial:
    config = resolved(experiment(method=method, variant=method, seed=seed, **changes))
    return Trial(f"{method}_s{seed}", config, {"method": method})


def sweep_of(*trials: Trial) -> Sweep:
    return Sweep("small", "A small sweep", None, 1.0, trials)


def begin(directory: SweepDirectory, one: Trial) -> RunDirectory:
    return RunDirectory.create(directory.run_path(one), one.experiment, cluster("in_process"), {})


def finish(directory: SweepDirectory, one: Trial) -> None:
    """Create a run directory with the parts of a summary that the table reads."""
    path = begin(directory, one).path
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
        "name": one.experiment.name,
        "score_matrix": {"0": [[score] * len(one.stream)] * len(one.stream)},
        "wall_seconds": 1.0,
        "peak_memory_bytes": {},
        "exchange": {},
        "replay": {},
    }
    write_json(path / "summary.json", summary)


@pytest.fixture
def directory(tmp_path: Path) -> SweepDirectory:
    return SweepDirectory(tmp_path / "sweep")


def test_new_begun_and_done(directory: SweepDirectory) -> None:
    new, half, begun, done = (trial("l4", seed) for seed in range(4))
    directory.record(sweep_of(new))
    directory.run_path(half).mkdir(parents=True)
    (directory.run_path(half) / "state.json").write_text("{}")  # killed before it became a run
    begin(directory, begun)
    finish(directory, done)
    states = directory.states(sweep_of(new, half, begun, done))
    assert list(states.values()) == ["new", "new", "begun", "done"]
    directory.discard(half)
    assert not directory.run_path(half).exists()


def test_a_run_with_other_settings_is_refused(directory: SweepDirectory) -> None:
    directory.record(sweep_of(trial("l4")))
    finish(directory, trial("l4"))
    other = trial("l4", training={"epochs": 3, "batch_size": 8}, optim={"lr": 0.5})
    with pytest.raises(RunDirectoryError) as caught:
        directory.states(sweep_of(other))
    message = str(caught.value)
    assert "l4_s0" in message
    assert "training.epochs is 2 there and 3 here" in message
    assert "and 1 more" not in message, "with few differences, all are named"


def test_a_run_that_was_measured_on_general_text_later_is_still_a_trial_of_the_sweep(directory: SweepDirectory) -> None:
    directory.record(sweep_of(trial("l4")))
    finish(directory, trial("l4", evaluation={"chunk": 4, "max_new_tokens": 8, "general": "/prose.txt"}))
    assert list(directory.states(sweep_of(trial("l4"))).values()) == ["done"]


def test_a_run_that_was_scored_together_later_is_the_same_trial(directory: SweepDirectory) -> None:
    directory.record(sweep_of(trial("l4")))
    evaluation = trial("l4").experiment.evaluation.model_dump() | {"together": True}
    finish(directory, trial("l4", evaluation=evaluation))
    assert list(directory.states(sweep_of(trial("l4"))).values()) == ["done"]


def test_files_that_are_no_run_are_not_removed(directory: SweepDirectory) -> None:
    directory.record(sweep_of(trial("l4")))
    directory.run_path(trial("l4")).mkdir()
    (directory.run_path(trial("l4")) / "thesis.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match=r"thesis\.txt"):
        directory.states(sweep_of(trial("l4")))
    assert (directory.run_path(trial("l4")) / "thesis.txt").is_file()


def test_a_directory_with_another_sweep_or_other_files_is_refused(directory: SweepDirectory, tmp_path: Path) -> None:
    directory.record(sweep_of(trial("l4")))
    with pytest.raises(RunDirectoryError, match=r"holds another sweep: its scale is 1\.0, not 0\.1"):
        directory.states(replace(sweep_of(trial("l4")), scale=0.1))
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match="is not a sweep"):
        SweepDirectory(tmp_path / "papers").states(sweep_of(trial("l4")))
    with pytest.raises(RunDirectoryError, match="is not a sweep"):
        SweepDirectory(tmp_path / "papers" / "thesis.txt").states(sweep_of(trial("l4")))


def test_a_sweep_that_was_cut_off_before_its_record_is_started_again(directory: SweepDirectory) -> None:
    with directory.lock():
        pass
    assert list(directory.states(sweep_of(trial("l4"))).values()) == ["new"]


def test_the_record_grows(directory: SweepDirectory) -> None:
    directory.record(sweep_of(trial("l4")))
    directory.record(sweep_of(trial("lamol"), trial("l4")))
    record = json.loads((directory.path / "sweep.json").read_text())
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


def test_the_table_holds_the_finished_trials(directory: SweepDirectory) -> None:
    trials = [trial(method, seed) for method in ("lamol", "l4") for seed in range(2)]
    directory.record(sweep_of(*trials))
    assert directory.write_table() is None
    for one in trials[:3]:
        finish(directory, one)
    begin(directory, trials[3])
    text = directory.write_table()
    assert text is not None
    assert text.startswith("# A small sweep (1 of 4 trials missing)\n")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| l")}
    assert "40.5 ± 0.7" in rows["lamol"]
    assert "50.0" in rows["l4"]
    assert (directory.path / "table.md").read_text() == text


def test_a_run_that_was_killed_before_its_report_gets_one(directory: SweepDirectory) -> None:
    small = {"stream": [{"name": "mini.woz", "train": 30, "test": 4}], "training": {"epochs": 1, "batch_size": 8}}
    done, begun = trial("finetune", **small), trial("lamol", **small)
    directory.record(sweep_of(done, begun))
    run, _ = complete_run(done.experiment, cluster("in_process"), directory.run_path(done))
    begin(directory, begun)
    assert not (run.path / "report.md").exists()
    directory.write_missing_reports()
    report = (run.path / "report.md").read_text()
    assert report.startswith("# small: finetune on mini.woz, seed 0")
    assert not (directory.run_path(begun) / "report.md").exists()
    (run.path / "report.md").write_text("as it was")
    directory.write_missing_reports()
    assert (run.path / "report.md").read_text() == "as it was"


def test_the_manifest_of_a_run_names_its_sweep(directory: SweepDirectory) -> None:
    directory.record(replace(sweep_of(trial("l4")), title="A sweep, scaled", scale=0.1))
    assert directory.provenance() == {"sweep": "A sweep, scaled", "scale": 0.1}


def test_one_sweep_at_a_time(directory: SweepDirectory) -> None:
    with directory.lock(), pytest.raises(RunDirectoryError, match="in use by process"), directory.lock():
        pass
    with directory.lock():
        pass


def test_the_folder_of_a_sweep_is_closed_to_others_until_its_owner_shares_it(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path / "sweep")
    with directory.lock():
        assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.path.chmod(0o755)
    with directory.lock():
        assert directory.path.stat().st_mode & 0o777 == 0o755


def test_the_table_ends_with_the_paired_differences_that_the_latest_call_wants(directory: SweepDirectory) -> None:
    trials = [trial(method, seed) for method in ("lamol", "l4") for seed in range(3)]
    for one in trials:
        finish(directory, one)
    directory.record(sweep_of(*trials))
    plain = directory.write_table()
    paired = replace(sweep_of(*trials), against="lamol")
    assert directory.states(paired), "the same sweep"
    directory.record(paired)
    text = directory.write_table()
    assert plain is not None and text is not None and text.startswith(plain)
    assert "| l4      |     3 |  +10.00 | +10.00 to +10.00 |     better |" in text
    directory.record(sweep_of(*trials))
    assert directory.write_table() == plain


def test_a_table_without_a_finished_run_to_compare_with(directory: SweepDirectory) -> None:
    trials = [trial("lamol"), trial("l4")]
    directory.record(replace(sweep_of(*trials), against="lamol"))
    finish(directory, trials[1])
    text = directory.write_table()
    assert text is not None and "No finished run of lamol can be paired." in text
