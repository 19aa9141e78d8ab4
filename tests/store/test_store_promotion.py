"""Which stage of a run is served, as promotions are taken and taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.promotion import FILE, decide, decisions, served_stage
from ray_l4.store.run_directory import RunDirectory, RunState

EXPERIMENT = ExperimentConfig.model_validate({"stream": ["mini.woz", "mini.sql"], "model": {"name": "gpt2"}})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", EXPERIMENT, ClusterConfig(), {})


def test_a_run_without_promotions_serves_its_newest_finished_stage(run: RunDirectory) -> None:
    assert served_stage(run) is None
    run.save_state(RunState(stages_done=2))
    assert served_stage(run) == 1


def test_the_last_promotion_counts_and_a_stage_that_was_refused_is_not_served(run: RunDirectory) -> None:
    run.save_state(RunState(stages_done=2))
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
    run.save_state(RunState(stages_done=2))
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
    run.save_state(RunState(stages_done=1))
    decide(run, 0, promoted=True, by="hand", why="asked for")
    text = (run.path / FILE).read_text(encoding="utf-8")
    (run.path / FILE).write_text(text.replace("true", "false"), encoding="utf-8")
    with pytest.raises(DamagedError, match="damaged"):
        served_stage(run)
