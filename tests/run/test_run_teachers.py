"""Teachers that are trained first: a run of their own, or one that is there already."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, RayL4Error, RunDirectoryError
from ray_l4.methods import resolved, teacher_experiment
from ray_l4.run import execute
from ray_l4.run.session import start
from ray_l4.run.teachers import open_teachers, teacher_weights
from ray_l4.seeds import derive
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small

LOCAL = small.cluster("in_process")
Finished = Callable[[str], small.Finished]


def test_the_teachers_run_is_a_finished_run_like_any_other(finished: Finished) -> None:
    run, _ = finished("l2kd-word")
    teachers = RunDirectory.open(run.teachers())
    summary = teachers.summary()
    assert (summary["method"], summary["stream"], summary["peers"]) == ("single-qa-lm", ["mini.rest", "mini.woz"], 1)
    assert {cell.task: cell.stage for cell in teachers.scores()} == {"mini.rest": 0, "mini.woz": 1}, "its own task each"
    assert sorted(small.weights(teachers)) == [
        f"checkpoints/stage-{stage}/epoch-3/student-0/model.safetensors" for stage in (0, 1)
    ]
    assert (teachers.path / "tokenizer" / "tokenizer.json").read_bytes() == (
        run.path / "tokenizer" / "tokenizer.json"
    ).read_bytes()
    assert teachers.experiment().seed == derive(0, "teachers"), "not the students' dropout and order once more"


def test_each_task_has_its_own_teacher(finished: Finished) -> None:
    teachers = RunDirectory.open(finished("l2kd-word")[0].teachers())
    first, second = (teacher_weights(teachers, stage).tobytes() for stage in (0, 1))
    assert first != second
    assert first == (teachers.checkpoint(0, 3, 0) / "model.safetensors").read_bytes()


def test_all_methods_of_a_seed_have_the_same_teachers(finished: Finished) -> None:
    found = [small.weights(RunDirectory.open(finished(m)[0].teachers())) for m in ("l2kd-word", "l2kd-seq-soft")]
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """What ``l2kd-word`` would train inside, as a run that a user made before."""
    config = teacher_experiment(resolved(small.quick("l2kd-word")))
    run, _ = small.complete_run(config, LOCAL, tmp_path_factory.mktemp("teachers") / "run")
    return run


def test_teachers_trained_before_teach_what_those_trained_inside_do(
    trained: RunDirectory, finished: Finished, tmp_path: Path
) -> None:
    config = small.quick("l2kd-word", teachers={"run": trained.path})
    run, _ = small.complete_run(config, LOCAL, tmp_path / "run")
    inside, _ = finished("l2kd-word")
    assert not run.teachers().exists()
    assert small.weights(trained) == small.weights(RunDirectory.open(inside.teachers()))
    assert small.weights(run) == small.weights(inside)
    assert small.scores(run) == small.scores(inside)


def test_it_matters_who_teaches(finished: Finished, tmp_path: Path) -> None:
    """A student of other teachers, with labels that it never sees, becomes another."""
    other, _ = finished("single-qa-lm")  # another seed
    run, _ = small.complete_run(small.quick("l2kd-word", teachers={"run": other.path}), LOCAL, tmp_path / "run")
    mine, theirs = small.weights(run), small.weights(finished("l2kd-word")[0])
    assert all(mine[name] != theirs[name] for name in theirs)


# --- runs that cannot teach


def offered(config: ExperimentConfig, folder: Path, *, done: bool = True) -> Path:
    """A run of this kind that has finished, as far as its files say."""
    _, run = small.new_run(config, LOCAL, folder)
    if done:
        write_json(run.path / "summary.json", {})
    return run.path


def single(**changes: Any) -> ExperimentConfig:
    return small.quick("single-qa-lm", **changes)


@pytest.mark.parametrize(
    ("config", "done", "error", "message"),
    [
        (single(), False, RunDirectoryError, r"offer: has no summary\.json: the run did not finish.*resume"),
        (
            small.quick("finetune"),
            True,
            ConfigError,
            r"teachers\.run: .*offer is a run of finetune; expected single-qa-lm",
        ),
        (
            single(model={"from_scratch": {"layers": 2, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400}}),
            True,
            ConfigError,
            r"teachers\.run: .*offer trained a different model",
        ),
        (
            single(data={"seed": 1}),
            True,
            RunDirectoryError,
            r"teachers\.run: .*offer learned from different data.*data\.seed",
        ),
        (
            single(stream=single().model_dump()["stream"][::-1]),
            True,
            RunDirectoryError,
            r"different data, .*same stream \(tasks, order",
        ),
    ],
    ids=["unfinished", "method", "model", "data", "order"],
)
def test_a_run_that_cannot_teach_is_refused(
    tmp_path: Path, config: ExperimentConfig, done: bool, error: type[RayL4Error], message: str
) -> None:
    path = offered(config, tmp_path / "offer", done=done)
    setup, run = small.new_run(small.quick("l2kd-seq", teachers={"run": path}), LOCAL, tmp_path / "run")
    with pytest.raises(error, match=message):
        open_teachers(setup, run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    setup, run = small.new_run(small.quick("l2kd-seq", teachers={"run": tmp_path / "none"}), LOCAL, tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="none: not a run directory"):
        open_teachers(setup, run)


def test_a_damaged_run_of_teachers_inside_is_named(tmp_path: Path) -> None:
    setup, run = small.stopped_run(small.quick("l2kd-seq"), tmp_path / "run", "learning mini.woz")
    (run.teachers() / "state.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"teachers/state\.json: cannot be read as JSON"):
        small.finish(start(setup, LOCAL, run))


def test_a_teacher_whose_weights_are_gone_is_named(tmp_path: Path) -> None:
    setup, run = small.stopped_run(small.quick("l2kd-word"), tmp_path / "run", "the teachers are trained")
    shutil.rmtree(run.teachers() / "checkpoints" / "stage-0")
    with pytest.raises(RunDirectoryError, match=r"teachers/.*stage-0.*model\.safetensors: is missing"):
        teacher_weights(RunDirectory.open(run.teachers()), 0)
    small.finish(start(setup, LOCAL, run))
    assert len(teacher_weights(RunDirectory.open(run.teachers()), 0)), "a run trains its own teachers again"


@pytest.mark.slow
@pytest.mark.parametrize("left", ["a folder", "a run without its tokeniser"])
def test_a_run_that_was_killed_while_its_teachers_were_set_up_goes_on(
    tmp_path: Path, left: str, finished: Finished
) -> None:
    config = small.quick("l2kd-word")
    setup, run = small.new_run(config, LOCAL, tmp_path / "run")
    if left == "a folder":
        run.teachers().mkdir()
        (run.teachers() / "manifest.json").write_text("{}", encoding="utf-8")
    else:
        shutil.rmtree(open_teachers(setup, run).path / "tokenizer")
    small.finish(start(setup, LOCAL, run))
    small.assert_equal(run, finished("l2kd-word")[0])


@pytest.mark.slow
def test_the_time_of_a_run_holds_that_of_its_teachers(tmp_path: Path) -> None:
    """Also of those that an earlier call trained."""
    setup, run = small.stopped_run(small.quick("l2kd-word"), tmp_path / "run", "the teachers are trained")
    teachers = RunDirectory.open(run.teachers())
    teachers.save_state(teachers.state().model_copy(update={"wall_seconds": 1000.0}))
    summary = small.finish(start(setup, LOCAL, run))
    assert 1000.0 < summary["wall_seconds"] < 1100.0


def test_the_time_of_teachers_that_were_there_already_does_not_count(tmp_path: Path, trained: RunDirectory) -> None:
    path = shutil.copytree(trained.path, tmp_path / "offer")
    teachers = RunDirectory.open(path)
    teachers.save_state(teachers.state().model_copy(update={"wall_seconds": 1000.0}))
    setup, run = small.new_run(small.quick("l2kd-word", teachers={"run": path}), LOCAL, tmp_path / "run")
    assert small.finish(start(setup, LOCAL, run))["wall_seconds"] < 100.0


def test_what_a_frozen_teacher_sends_is_counted_where_it_arrives(finished: Finished) -> None:
    for method, receives in (("l2kd-word", True), ("l4-released", True), ("l4", True), ("lamol", False)):
        figures = finished(method)[0].step_figures()
        with_current = [row for row in figures if row["bytes_received"]]
        assert bool(with_current) == receives, method
        if method == "l4":
            assert all(row["bytes_received"] == row["bytes_sent"] for row in figures), "two students, one batch"


def test_one_process_reports_its_memory_once(finished: Finished) -> None:
    peaks = finished("l4")[0].state().peak_memory_bytes
    assert list(peaks) == ["process"] and peaks["process"] > 10**7


def test_bad_teachers_are_found_before_a_folder_is_made(tmp_path: Path) -> None:
    config = small.quick("l2kd-seq", teachers={"run": tmp_path / "none"})
    with pytest.raises(RunDirectoryError, match="none: not a run directory"):
        execute.run(config, LOCAL, tmp_path / "run", "test", Console(quiet=True))
    assert not (tmp_path / "run").exists()
