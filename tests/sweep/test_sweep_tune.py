"""Trials on Ray Tune: they share the cluster, a failure does not stop the others, and a begun trial is resumed."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import ray
from rich.console import Console

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.methods import resolved
from ray_l4.store.run_directory import RunDirectory, RunState
from ray_l4.sweep.directory import SweepDirectory
from ray_l4.sweep.room_check import trial_bundles
from ray_l4.sweep.run_trial import run_trial
from ray_l4.sweep.trials import Sweep, Trial
from ray_l4.sweep.tune import run_on_tune
from ray_l4.sweep.view import SweepView
from tests.run.run_fixtures import cluster, complete_run, experiment, scores, weights

SMALL = {
    "stream": [{"name": "mini.woz", "train": 30, "test": 4}, {"name": "mini.sql", "train": 30, "test": 4}],
    "training": {"epochs": 1, "batch_size": 8},
}


def trial(name: str, method: str, **changes: object) -> Trial:
    return Trial(name, resolved(experiment(method=method, variant=name, **SMALL | changes)), {"method": method})


def run(directory: SweepDirectory, profile: ClusterConfig, *trials: Trial) -> tuple[dict[str, str], str]:
    """Run the trials; return the messages of failed ones and the output."""
    directory.path.mkdir(exist_ok=True)
    directory.record(Sweep("small", "small", None, 0.5, trials))
    output = io.StringIO()
    pending = {one.name: one for one in trials}
    view = SweepView(pending, 0, directory, Console(file=output, width=200))
    return run_on_tune(pending, directory, profile, "test", view), output.getvalue()


def test_trials_reserve_bundles() -> None:
    two_each = cluster("object_store", students={"cpus": 2}, evaluators={"count": 1, "cpus": 1})
    assert trial_bundles(trial("a", "l4"), two_each) == [{"CPU": 2}, {"CPU": 2}, {"CPU": 1}]
    assert trial_bundles(trial("a", "lamol"), two_each) == [{"CPU": 2}, {"CPU": 1}]
    one_process = cluster("in_process", students={"cpus": 1, "threads": 3, "gpus": 0.5})
    assert trial_bundles(trial("a", "l4"), one_process) == [{"CPU": 3, "GPU": 0.5}]


@pytest.mark.usefixtures("ray_cluster")
def test_students_use_the_bundles_of_their_trial(tmp_path: Path) -> None:
    """The trial reserves all CPUs: a second reservation by its run would wait for ever."""
    cpus = ray.cluster_resources()["CPU"]
    profile = cluster("object_store", ray={"num_cpus": int(cpus)}, students={"cpus": cpus / 2}, timeouts={"start": 60})
    directory = SweepDirectory(tmp_path / "sweep")
    failures, _ = run(directory, profile, trial("l4", "l4"))
    assert failures == {}
    run_directory = RunDirectory.open(directory.path / "l4")
    assert run_directory.summary()["stream"] == ["mini.woz", "mini.sql"]
    reference, _ = complete_run(trial("l4", "l4").experiment, cluster("in_process"), tmp_path / "alone")
    assert weights(run_directory) == weights(reference), "equal to a run outside a sweep, bit for bit"
    free = ray.available_resources()
    assert free["CPU"] == cpus, "the bundles were released"


@pytest.mark.usefixtures("ray_cluster")
def test_a_failing_trial_does_not_stop_the_others_and_a_begun_one_is_resumed(tmp_path: Path) -> None:
    profile = cluster("in_process")
    directory = SweepDirectory(tmp_path / "sweep")
    good, begun = trial("good", "finetune"), trial("begun", "lamol")
    too_small = {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 12, "vocabulary": 400}}
    bad = trial("bad", "finetune", model=too_small)
    reference, _ = complete_run(begun.experiment, profile, tmp_path / "alone")
    shutil.copytree(reference.path, directory.run_path(begun))
    _forget_second_task(RunDirectory.open(directory.run_path(begun)))

    failures, printed = run(directory, profile, bad, good, begun)
    assert list(failures) == ["bad"]
    assert "do not fit" in failures["bad"], "the run's own message"
    assert "do not fit" in directory.log_path(bad).read_text()
    assert not (directory.run_path(bad) / "summary.json").exists()
    assert "failed, see" in printed
    assert printed.count("done after") == 2
    assert len(printed.splitlines()) == 3, "Tune itself prints nothing"

    finished = RunDirectory.open(directory.run_path(begun))
    assert "resumed after mini.woz" in directory.log_path(begun).read_text()
    assert weights(finished) == weights(reference)
    assert scores(finished) == scores(reference)
    assert RunDirectory.open(directory.run_path(good)).summary()["variant"] == "good"
    manifest = json.loads((directory.run_path(good) / "manifest.json").read_text())
    assert (manifest["command"], manifest["sweep"], manifest["scale"]) == ("test", "small", 0.5)
    assert {path.name for path in directory.path.iterdir()} == {"sweep.json", "logs", "good", "begun"}


def _forget_second_task(finished: RunDirectory) -> None:
    """Put the run directory into the state of a run that was killed during its second task."""
    for name in ("summary.json", "checkpoints/stage-1", "replay/stage-1.parquet"):
        path = finished.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [*finished.path.glob("scores/stage-1.*"), *finished.path.glob("steps/stage-1.*")]:
        path.unlink()
    finished.save_state(RunState(stages_done=1))


def test_a_sweep_directory_that_a_node_cannot_see_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="not visible from this node"):
        run_trial(trial("l4", "l4"), SweepDirectory(tmp_path / "sweep"), cluster("in_process"), "test")
    assert list(tmp_path.iterdir()) == []
