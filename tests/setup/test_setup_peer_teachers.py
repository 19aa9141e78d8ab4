"""Which students of a run can be distilled into one, and what is said of the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.methods import fusing, graph_of, num_students, num_teachers, peer_experiment, resolved
from ray_l4.setup.peer_teachers import finished_peers, fusable, peer_checkpoint, taught_stage
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small

LOCAL = small.cluster("in_process")


def as_if_finished(folder: Path, experiment: ExperimentConfig, *, done: bool = True) -> RunDirectory:
    """A run that has learned all its stages, as far as its files say."""
    run = RunDirectory.create(folder, resolved(experiment), LOCAL, {"command": "test"})
    last = len(experiment.stream) - 1
    for student in range(num_students(experiment)):
        checkpoint = run.checkpoint(last, experiment.epochs_of(last), student)
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "config.json", {})
    run.replay(last).parent.mkdir()
    run.replay(last).touch()
    if done:
        write_json(run.path / "summary.json", {})
    return run


def several(count: int, method: str = "l4") -> ExperimentConfig:
    return small.quick(method, peers={"count": count})


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_students_of_a_run_can_teach(count: int, tmp_path: Path) -> None:
    run = as_if_finished(tmp_path / "run", several(count))
    found = fusable(run)
    assert (found.students, found.notes) == (list(range(count)), [])
    config = resolved(fusing(run.experiment(), run.path, found.students))
    assert (num_students(config), num_teachers(config), graph_of(config).size) == (1, count, 1 + count)
    assert finished_peers(config) is not None and taught_stage(config) == 1
    assert peer_checkpoint(run, 1, 0) == run.checkpoint(1, 3, 0)


def test_a_student_without_a_checkpoint_is_left_out(tmp_path: Path) -> None:
    run = as_if_finished(tmp_path / "run", several(4))
    run.save_state(run.state().model_copy(update={"lost_students": {3: "killed"}}))
    shutil.rmtree(run.checkpoint(1, 3, 0))
    found = fusable(run)
    assert found.students == [1, 2]
    assert found.notes == [
        "student 3 was lost, and is left out: killed",
        f"student 0 is left out: {run.checkpoint(1, 3, 0)} is missing",
    ]


def test_what_cannot_be_fused_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"did not finish\. Resume it: ray-l4 resume"):
        fusable(as_if_finished(tmp_path / "unfinished", several(2), done=False))
    with pytest.raises(RunDirectoryError, match=r"this run of lamol has one student.*ray-l4 serve .*peers\.count"):
        fusable(as_if_finished(tmp_path / "one", several(1, "lamol")))
    with pytest.raises(ConfigError, match="a run of multi-qa-lm does not learn one task after another"):
        fusable(as_if_finished(tmp_path / "joint", several(2, "multi-qa-lm")))
    run = as_if_finished(tmp_path / "alone", several(2))
    run.save_state(run.state().model_copy(update={"lost_students": {1: "killed"}}))
    with pytest.raises(RunDirectoryError, match=r"1 student of 2 left, so there are no two peers.*was lost.*killed"):
        fusable(run)
    run.save_state(run.state().model_copy(update={"lost_students": {}}))
    shutil.rmtree(run.checkpoint(1, 3, 0))
    with pytest.raises(RunDirectoryError, match=r"no two peers to fuse: student 0 is left out: .* is missing"):
        fusable(run)


def test_without_replay_a_note_says_what_is_learned(tmp_path: Path) -> None:
    run = as_if_finished(tmp_path / "run", several(2))
    run.replay(1).unlink()
    assert [note.partition(": ")[0] for note in fusable(run).notes] == [str(run.replay(1))]
    single = small.quick("l4", stream=["mini.rest"])
    first = as_if_finished(tmp_path / "single", single)
    first.replay(0).unlink()
    assert fusable(first).notes == [], "a run of one task replays nothing"


def test_a_run_that_is_not_there_or_a_student_that_it_has_not_is_refused(tmp_path: Path) -> None:
    run = as_if_finished(tmp_path / "run", several(2))
    config = resolved(fusing(run.experiment(), run.path, [0, 1]))
    other = fusing(run.experiment(), run.path, [0, 5])
    with pytest.raises(ConfigError, match=r"teachers\.students: .*run has no student 5; expected numbers from 0 to 1"):
        finished_peers(other)
    shutil.rmtree(run.checkpoint(1, 3, 1))
    with pytest.raises(RunDirectoryError, match=r"student-1: is missing, so student 1 of .* cannot teach"):
        finished_peers(config)
    shutil.rmtree(run.path)
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        finished_peers(config)
    assert finished_peers(several(2)) is None, "other methods have no such run"


def test_the_student_is_like_the_first_that_is_present(tmp_path: Path) -> None:
    each = [{"lr": 1.0}, {"lr": 2.0, "dropout": 0.2}, {"model": {"from_scratch": {"width": 16}}}]
    run = as_if_finished(tmp_path / "run", small.quick("l4", peers={"count": 3, "each": each}))
    config = resolved(fusing(run.experiment(), run.path, [1, 2]))
    assert peer_experiment(config, 0).optim.lr == 2.0
    widths = [peer_experiment(config, peer).model.from_scratch for peer in range(3)]
    assert [own.width for own in widths if own is not None] == [32, 32, 16]


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ({}, r"teachers: fuse needs a finished run .* ray-l4 fuse RUN_DIR"),
        ({"run": "/a/run"}, "at least two different students"),
        ({"run": "/a/run", "students": [1]}, "at least two different students"),
        ({"run": "/a/run", "students": [1, 1]}, "at least two different students"),
    ],
)
def test_the_method_says_what_it_needs(teachers: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(small.quick("fuse", teachers=teachers))


def test_several_students_are_not_made_of_peers() -> None:
    with pytest.raises(ConfigError, match=r"peers\.count: fuse makes one student of several peers; expected 1, not 2"):
        resolved(small.quick("fuse", peers={"count": 2}, teachers={"run": "/a/run", "students": [0, 1]}))
