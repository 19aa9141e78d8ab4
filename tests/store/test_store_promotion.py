"""Which stage of a run is served, as promotions are taken and taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.promotion import FILE, decide, decisions, needed_stages, num_decided, served_stage, withdraw
from ray_l4.store.run_directory import RunDirectory, RunState

EXPERIMENT = ExperimentConfig.model_validate({"stream": ["mini.woz", "mini.sql"], "model": {"name": "gpt2"}})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", EXPERIMENT, ClusterConfig(), {})


def finish(run: RunDirectory, stages: int) -> None:
    """Finish so many stages, with checkpoints."""
    for stage in range(stages):
        run.checkpoint(stage, 1, 0).mkdir(parents=True, exist_ok=True)
    run.save_state(RunState(stages_done=stages))


def test_a_run_without_promotions_serves_its_newest_finished_stage(run: RunDirectory) -> None:
    assert served_stage(run) is None and needed_stages(run) == set()
    finish(run, 2)
    assert served_stage(run) == 1 and needed_stages(run) == set() and num_decided(run) == 0


def test_the_last_promotion_counts_and_a_stage_that_was_refused_is_not_served(run: RunDirectory) -> None:
    finish(run, 2)
    decide(run, 0, promoted=True, by="gate", why="the first stage")
    decide(run, 1, promoted=False, by="gate", why="mini.woz fell by 30.0")
    assert served_stage(run) == 0
    decide(run, 1, promoted=True, by="hand", why="asked for")
    assert served_stage(run) == 1
    decide(run, 0, promoted=True, by="hand", why="asked for")
    assert served_stage(run) == 0
    assert [(taken.stage, taken.promoted, taken.by) for taken in decisions(run)] == [
        (0, True, "gate"),
        (1, False, "gate"),
        (1, True, "hand"),
        (0, True, "hand"),
    ]


def test_a_promoted_stage_that_a_run_went_back_before_is_not_served(run: RunDirectory) -> None:
    finish(run, 2)
    decide(run, 0, promoted=True, by="gate", why="first")
    decide(run, 1, promoted=True, by="gate", why="better")
    run.save_state(RunState(stages_done=1))
    assert served_stage(run) == 0


@pytest.mark.parametrize(("done", "stage"), [(0, 0), (1, 1), (2, -1)])
def test_only_finished_stages_can_be_promoted(run: RunDirectory, done: int, stage: int) -> None:
    run.save_state(RunState(stages_done=done))
    with pytest.raises(RunDirectoryError, match=f"stage {stage} cannot be served"):
        decide(run, stage, promoted=True, by="hand", why="asked for")
    assert not (run.path / FILE).exists()


def test_a_damaged_record_is_noticed(run: RunDirectory) -> None:
    finish(run, 1)
    decide(run, 0, promoted=True, by="hand", why="asked for")
    text = (run.path / FILE).read_text(encoding="utf-8")
    (run.path / FILE).write_text(text.replace("true", "false"), encoding="utf-8")
    with pytest.raises(DamagedError, match="damaged"):
        served_stage(run)


def test_a_decision_by_hand_settles_all_stages_that_have_finished(run: RunDirectory) -> None:
    finish(run, 4)
    decide(run, 0, promoted=True, by="gate", why="first")
    assert num_decided(run) == 1 and needed_stages(run) == {0, 1, 2, 3}, "three may still be served"
    decide(run, 1, promoted=True, by="hand", why="asked for")
    assert num_decided(run) == 4 and needed_stages(run) == {1}
    finish(run, 5)
    assert num_decided(run) == 4 and needed_stages(run) == {1, 4}


def test_decisions_about_stages_that_are_learned_again_are_forgotten(run: RunDirectory) -> None:
    finish(run, 3)
    for stage in range(3):
        decide(run, stage, promoted=True, by="gate", why="better")
    decide(run, 1, promoted=True, by="hand", why="asked for")
    withdraw(run, 2)
    assert [own.stage for own in decisions(run)] == [0, 1, 1] and num_decided(run) == 2
    before = (run.path / FILE).read_bytes()
    withdraw(run, 2)
    assert (run.path / FILE).read_bytes() == before


def test_a_stage_without_checkpoints_cannot_be_served_and_can_be_refused(run: RunDirectory) -> None:
    run.save_state(RunState(stages_done=1))
    with pytest.raises(RunDirectoryError, match="its checkpoints are gone"):
        decide(run, 0, promoted=True, by="hand", why="asked for")
    decide(run, 0, promoted=False, by="gate", why="mini.woz fell")
    assert served_stage(run) == 0, "nothing else has ever been promoted"
