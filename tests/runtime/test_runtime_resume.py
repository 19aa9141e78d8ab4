"""A run that ended early goes on as if it had not."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from ray_l4.runtime.coordinator import StoppedError
from ray_l4.runtime.session import start
from ray_l4.store.run_directory import RunDirectory
from tests.runtime import runtime_fixtures as small


def test_a_run_stopped_after_its_first_task_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    profile = small.cluster("in_process")
    undisturbed, expected = small.complete_run(small.experiment(), profile, tmp_path / "undisturbed")
    setup, run = small.new_run(small.experiment(), profile, tmp_path / "stopped")
    session = start(setup, profile, run)
    while run.state().stages_done == 0:
        assert not session.wait(0.005), "the run ended before it could be stopped"
    session.close()
    with pytest.raises(StoppedError, match="ray-l4 resume"):
        session.result()
    assert not (run.path / "summary.json").exists()

    found = small.finish(start(setup, profile, run))

    assert small.weights(run) == small.weights(undisturbed)
    assert small.scores(run) == small.scores(undisturbed)
    assert found["score_matrix"] == expected["score_matrix"]
    assert found["replay"] == expected["replay"]
    assert len(run.step_figures()) == len(undisturbed.step_figures())


def test_scores_that_were_not_taken_before_the_end_are_taken_on_resume(tmp_path: Path) -> None:
    """Every epoch is scored, and all of it is lost: the checkpoints are enough to bring it back."""
    profile = small.cluster("in_process")
    config = small.experiment(evaluation={"when": "epoch", "max_new_tokens": 8})
    run, expected = small.complete_run(config, profile, tmp_path / "run")
    before = small.scores(run)
    assert len(before) == 2 * 2 * 2 * 2, "stages x epochs x students x tasks"
    shutil.rmtree(run.path / "scores")
    (run.path / "summary.json").unlink()
    setup, _ = small.new_run(config, profile, tmp_path / "other")
    found = small.finish(start(setup, profile, RunDirectory.open(run.path)))
    assert small.scores(run) == before
    assert found["score_matrix"] == expected["score_matrix"]


def test_time_is_added_up_over_pauses(tmp_path: Path) -> None:
    profile = small.cluster("in_process")
    run, summary = small.complete_run(small.experiment(), profile, tmp_path / "run")
    state = run.state()
    run.save_state(state.model_copy(update={"wall_seconds": 1000.0}))
    setup, _ = small.new_run(small.experiment(), profile, tmp_path / "other")
    time.sleep(0.1)
    resumed = small.finish(start(setup, profile, run))
    assert 1000.0 < resumed["wall_seconds"] < 1000.0 + 60.0 + summary["wall_seconds"]
