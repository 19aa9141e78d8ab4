"""Trials on Ray Tune: they share the cluster, one that fails does not stop the others, and a begun one is finished."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import ray
from rich.console import Console

from ray_l4.config.cluster import ClusterConfig
from ray_l4.methods import resolved
from ray_l4.store.run_directory import RunDirectory, RunState
from ray_l4.sweep.folder import SweepFolder
from ray_l4.sweep.run_trial import needs
from ray_l4.sweep.trials import Plan, Trial
from ray_l4.sweep.tune import run_on_tune
from ray_l4.sweep.view import SweepView
from tests.run.run_fixtures import cluster, complete_run, experiment, scores, weights

SMALL = {
    "stream": [{"name": "mini.woz", "train": 30, "test": 4}, {"name": "mini.sql", "train": 30, "test": 4}],
    "training": {"epochs": 1, "batch_size": 8},
}


def trial(name: str, method: str, **changes: object) -> Trial:
    return Trial(name, resolved(experiment(method=method, variant=name, **SMALL | changes)), {"method": method})


def run(folder: SweepFolder, profile: ClusterConfig, *trials: Trial) -> tuple[dict[str, str], str]:
    """What failed, and what was printed."""
    folder.path.mkdir(exist_ok=True)
    folder.record(Plan("small", "small", None, 0.5, trials))
    output = io.StringIO()
    pending = {one.folder: one for one in trials}
    view = SweepView(pending, 0, folder, Console(file=output, width=200))
    return run_on_tune(pending, folder, profile, "test", view), output.getvalue()


def test_what_a_trial_reserves() -> None:
    two_each = cluster("object_store", students={"cpus": 2}, evaluators={"count": 1, "cpus": 1})
    assert needs(trial("a", "l4"), two_each) == [{"CPU": 2}, {"CPU": 2}, {"CPU": 1}]
    assert needs(trial("a", "lamol"), two_each) == [{"CPU": 2}, {"CPU": 1}]
    one_process = cluster("in_process", students={"cpus": 1, "threads": 3, "gpus": 0.5})
    assert needs(trial("a", "l4"), one_process) == [{"CPU": 3, "GPU": 0.5}]


@pytest.mark.usefixtures("ray_cluster")
def test_students_take_the_places_of_their_trial(tmp_path: Path) -> None:
    """The trial reserves all CPUs there are: a second reservation by the run within it would wait for ever."""
    cpus = ray.cluster_resources()["CPU"]
    profile = cluster("object_store", ray={"num_cpus": int(cpus)}, students={"cpus": cpus / 2}, timeouts={"start": 60})
    folder = SweepFolder(tmp_path / "sweep")
    failures, _ = run(folder, profile, trial("l4", "l4"))
    assert failures == {}
    run_directory = RunDirectory.open(folder.path / "l4")
    assert run_directory.summary()["stream"] == ["mini.woz", "mini.sql"]
    reference, _ = complete_run(trial("l4", "l4").experiment, cluster("in_process"), tmp_path / "alone")
    assert weights(run_directory) == weights(reference), "in a sweep as by itself, bit for bit"
    free = ray.available_resources()
    assert free["CPU"] == cpus, "the places were given back"


@pytest.mark.usefixtures("ray_cluster")
def test_one_failing_trial_does_not_stop_the_others_and_a_begun_one_is_finished(tmp_path: Path) -> None:
    profile = cluster("in_process")
    folder = SweepFolder(tmp_path / "sweep")
    good, begun = trial("good", "finetune"), trial("begun", "lamol")
    too_small = {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 12, "vocabulary": 400}}
    bad = trial("bad", "finetune", model=too_small)
    reference, _ = complete_run(begun.experiment, profile, tmp_path / "alone")
    shutil.copytree(reference.path, folder.run(begun))
    _forget_second_task(RunDirectory.open(folder.run(begun)))

    failures, printed = run(folder, profile, bad, good, begun)
    assert list(failures) == ["bad"]
    assert "do not fit" in failures["bad"], "the message of the run itself"
    assert "do not fit" in folder.log(bad).read_text()
    assert not (folder.run(bad) / "summary.json").exists()
    assert "failed, see" in printed
    assert printed.count("done after") == 2
    assert len(printed.splitlines()) == 3, "nothing from Tune itself"

    finished = RunDirectory.open(folder.run(begun))
    assert "resumed after mini.woz" in folder.log(begun).read_text()
    assert weights(finished) == weights(reference)
    assert scores(finished) == scores(reference)
    assert RunDirectory.open(folder.run(good)).summary()["variant"] == "good"
    manifest = json.loads((folder.run(good) / "manifest.json").read_text())
    assert (manifest["command"], manifest["sweep"], manifest["scale"]) == ("test", "small", 0.5)
    assert {path.name for path in folder.path.iterdir()} == {"sweep.json", "logs", "good", "begun"}


def _forget_second_task(finished: RunDirectory) -> None:
    """As if the run had been killed while it learned its second task."""
    for name in ("summary.json", "checkpoints/stage-1", "replay/stage-1.parquet"):
        path = finished.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [*finished.path.glob("scores/stage-1.*"), *finished.path.glob("steps/stage-1.*")]:
        path.unlink()
    finished.save_state(RunState(stages_done=1))


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.path.mkdir()
    one = trial("l4", "l4")
    view = SweepView({"l4": one}, 0, folder, Console(file=io.StringIO()))
    failures = run_on_tune({"l4": one}, folder, cluster("in_process"), "test", view)
    assert "not seen from this node" in failures["l4"]
