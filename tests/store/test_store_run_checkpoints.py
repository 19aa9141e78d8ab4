"""Which checkpoints a run directory holds, and which run a checkpoint belongs to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.store.checkpoints import Wanted, checkpoint_at, checkpoints, is_model, last_checkpoints
from ray_l4.store.run_directory import RunDirectory, RunState

Place = tuple[int, int, int]
PLACES: list[Place] = [(s, e, n) for s in range(3) for e in (2, 10) for n in range(2) if (s, n) != (2, 1)]
"""Student 1 was lost in stage 2."""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    config = ExperimentConfig.model_validate({"stream": ["a", "b", "c"], "model": {"from_scratch": {}}})
    run = RunDirectory.create(tmp_path / "run", config, ClusterConfig(), {})
    run.save_state(RunState(stages_done=3))
    for place in PLACES:
        folder = run.checkpoint(*place)
        folder.mkdir(parents=True)
        (folder / ("adapter_config.json" if place[2] else "config.json")).touch()
    run.checkpoint(2, 11, 0).mkdir(parents=True)  # without a model in it
    run.checkpoint(2, 10, 0).with_name(".student-1.77.part").mkdir()  # left by a process that was killed
    return run


def chosen(run: RunDirectory, every_stage: bool = False, **wanted: int) -> list[Place]:
    found = last_checkpoints(run, Wanted(**wanted), every_stage)
    return [(each.stage, each.epoch, each.student) for each in found]


def test_all_checkpoints_are_found_in_order_of_their_numbers(run: RunDirectory) -> None:
    assert [(each.stage, each.epoch, each.student) for each in checkpoints(run)] == sorted(PLACES)
    assert all(is_model(each.folder) for each in checkpoints(run))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [(2, 10, 0), (1, 10, 1)]),
        ({"student": 1}, [(1, 10, 1)]),
        ({"stage": 0}, [(0, 10, 0), (0, 10, 1)]),
        ({"epoch": 2, "student": 0}, [(2, 2, 0)]),
        ({"stage": 1, "epoch": 2, "student": 1}, [(1, 2, 1)]),
        ({"every_stage": True, "student": 0}, [(0, 10, 0), (1, 10, 0), (2, 10, 0)]),
    ],
)
def test_the_last_of_those_asked_for_are_chosen(
    run: RunDirectory, wanted: dict[str, int], expected: list[Place]
) -> None:
    assert chosen(run, **wanted) == expected  # type: ignore[arg-type]


def test_a_stage_under_way_counts_only_if_it_is_named(run: RunDirectory) -> None:
    run.save_state(RunState(stages_done=2))
    assert chosen(run) == [(1, 10, 0), (1, 10, 1)]
    assert chosen(run, stage=2) == [(2, 10, 0)]


def test_what_is_not_there_is_said_beside_what_is(run: RunDirectory) -> None:
    with pytest.raises(
        RunDirectoryError, match=r"no checkpoint of stage 5, student 1\. It has those of stages 0, 1, 2; "
    ):
        chosen(run, stage=5, student=1)
    with pytest.raises(RunDirectoryError, match=r"epochs 2, 10; students 0, 1"):
        chosen(run, epoch=3)
    run.save_state(RunState(stages_done=0))
    with pytest.raises(RunDirectoryError, match=r"no stage of this run has finished.*ray-l4 resume"):
        chosen(run)


def test_a_checkpoint_knows_its_run_from_wherever_it_is_named(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run.checkpoint(1, 10, 1)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for path in (folder, tmp_path / "link", Path(), Path(os.path.relpath(folder)) / "." / ".." / folder.name):
        found = checkpoint_at(path)
        assert found is not None
        assert (found.stage, found.epoch, found.student, found.run.path) == (1, 10, 1, run.path.resolve())
        assert found.name == "stage-1.epoch-10.student-1"


@pytest.mark.parametrize(
    "path", ["student-0", "stage-0/epoch-1/student-0", "run/checkpoints/stage-0/epoch-x/student-0"]
)
def test_a_folder_elsewhere_belongs_to_no_run(tmp_path: Path, run: RunDirectory, path: str) -> None:
    (tmp_path / path).mkdir(parents=True)
    assert checkpoint_at(tmp_path / path) is None
