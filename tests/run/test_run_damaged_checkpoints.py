"""A run whose newest checkpoint is damaged goes back to the one before it, and ends as an undisturbed one."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.model import ModelConfig
from ray_l4.errors import DamagedError, ModelError, PeerLostError, RunDirectoryError
from ray_l4.learner.models import build_model, load_folder
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.run.going_back import go_back, go_back_if_damaged, whole_part
from ray_l4.run.session import Session
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.warnings import TrainingWarning, write_warnings
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.workers.student import Student
from tests.run import run_fixtures as small


def flip(path: Path, position: int = -100) -> None:
    """Change one bit; in a file of weights, among the values of its last tensor."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def finished_stage(run: RunDirectory) -> Path:
    """The folder of student 0's checkpoint after stage 0."""
    return next((run.path / "checkpoints/stage-0").glob("epoch-*/student-0"))


DAMAGES: dict[str, Callable[[RunDirectory], Path]] = {
    "a flipped bit": lambda run: _done(flip, finished_stage(run) / "model.safetensors"),
    "cut off": lambda run: _done(cut, finished_stage(run) / "model.safetensors"),
    "a missing file": lambda run: _done(Path.unlink, finished_stage(run) / "model.safetensors"),
    "another file of it": lambda run: _done(flip, finished_stage(run) / "config.json"),
    "its list of checksums": lambda run: _done(cut, finished_stage(run) / "SHA256SUMS"),
}

GUARDS: dict[str, Callable[[RunDirectory], Path]] = {
    "a flipped bit of a guard": lambda run: _done(flip, run.guard(0, 0)),
    "a missing guard": lambda run: _done(Path.unlink, run.guard(0, 0)),
}

VALIDATION: dict[str, Callable[[RunDirectory], Path]] = {
    "validation losses": lambda run: _done(lambda path: flip(path, 20), run.validation(0)),
}

VALIDATED: dict[str, Any] = {"evaluation": {"validation": 0.25}}


def _done(damage: Callable[[Path], None], path: Path) -> Path:
    damage(path)
    return path


def cases() -> list[Any]:
    kinds = (("lamol", {}, DAMAGES), ("ewc", {}, GUARDS), ("lamol", VALIDATED, VALIDATION), ("single-qa", {}, DAMAGES))
    return [
        pytest.param(method, changes, damage, id=f"{method}, {name}", marks=[pytest.mark.slow] if slow else [])
        for number, (method, changes, damages) in enumerate(kinds)
        for slow, (name, damage) in zip([False, *[number == 3] * 9], damages.items(), strict=False)
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Any]], RunDirectory]:
    known: dict[str, RunDirectory] = {}

    def run(method: str, changes: dict[str, Any]) -> RunDirectory:
        name = f"{method}-{bool(changes)}"
        if name not in known:
            config, folder = small.quick(method, **changes), tmp_path_factory.mktemp("expected") / name
            known[name], _ = small.complete_run(config, small.cluster("in_process"), folder)
        return known[name]

    return run


def figures(run: RunDirectory) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if not name.endswith("_seconds")} for row in run.step_figures()]


def warnings_of(session: Session) -> list[str]:
    return [line for line in session.snapshot().events if "warning: " in line and "The run goes back" in line]


@pytest.mark.parametrize(("method", "changes", "damage"), cases())
def test_a_resumed_run_goes_back_to_the_last_whole_stage(
    method: str,
    changes: dict[str, Any],
    damage: Callable[[RunDirectory], Path],
    undisturbed: Callable[[str, dict[str, Any]], RunDirectory],
    tmp_path: Path,
) -> None:
    expected = undisturbed(method, changes)
    setup, run = small.stopped_run(small.quick(method, **changes), tmp_path / "run", "learning mini.woz")
    if run.state().stages_done == 0:  # side by side: stopped before the first of them
        small.finish(small.start(setup, small.cluster("in_process"), run))
    assert whole_part(run, setup.experiment).damage is None
    path = damage(run)
    session = small.start(setup, small.cluster("in_process"), run)
    small.finish(session)
    (warning,) = warnings_of(session)
    assert str(path) in warning and "goes back to its beginning" in warning
    small.assert_equal(run, expected)
    assert figures(run) == figures(expected)
    assert whole_part(run, setup.experiment).damage is None


@pytest.mark.slow
def test_a_process_that_dies_while_a_run_goes_back(
    undisturbed: Callable[[str, dict[str, Any]], RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far it got, the next one goes back as well, and the run ends as an undisturbed one."""
    expected = undisturbed("lamol", {})
    setup, stopped = small.stopped_run(small.quick("lamol"), tmp_path / "stopped", "learning mini.woz")
    flip(finished_stage(stopped) / "model.safetensors")

    class KilledError(Exception):
        """Stands for the end of the process."""

    deaths = 0
    for after in range(99):
        folder, left = tmp_path / str(after), [after]
        shutil.copytree(stopped.path, folder)
        run = RunDirectory.open(folder)
        monkeypatch.undo()
        for module, name in ((Path, "unlink"), (shutil, "rmtree"), (RunDirectory, "save_state")):
            monkeypatch.setattr(module, name, _until(getattr(module, name), left, KilledError))
        try:
            go_back_if_damaged(run, setup, lambda line: None)
        except KilledError:
            deaths += 1
        monkeypatch.undo()
        small.finish(small.start(setup, small.cluster("in_process"), run))
        small.assert_equal(run, expected)
        assert figures(run) == figures(expected)
        shutil.rmtree(folder)
        if left[0] >= 0:
            break
    assert deaths > 4, "several files and folders were to be removed"


def _until(change: Callable[..., Any], left: list[int], error: type[Exception]) -> Callable[..., Any]:
    """Return ``change`` for the first ``left`` calls, and what raises ``error`` after that."""

    def changed(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return change(*arguments, **named)

    return changed


def test_of_three_stages_the_last_whole_one_is_used(tmp_path: Path) -> None:
    """The middle one is damaged too; nothing of the later stages stays."""
    stream = [{"name": name, "train": 16, "test": 4} for name in ("mini.rest", "mini.woz", "mini.sql")]
    config, profile = small.quick("lamol", stream=stream), small.cluster("in_process")
    expected, _ = small.complete_run(config, profile, tmp_path / "expected")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    small.finish(small.start(setup, profile, run))
    first = (finished_stage(run) / "model.safetensors").stat().st_mtime_ns
    replay = run.replay(1).stat().st_mtime_ns
    for stage in (1, 2):
        flip(next((run.path / f"checkpoints/stage-{stage}").glob("epoch-*/student-0")) / "model.safetensors")
    session = small.start(setup, profile, run)
    small.finish(session)
    (warning,) = warnings_of(session)
    assert "goes back to the end of mini.rest" in warning
    small.assert_equal(run, expected)
    assert figures(run) == figures(expected)
    assert (finished_stage(run) / "model.safetensors").stat().st_mtime_ns == first, "stage 0 is not learned again"
    assert run.replay(1).stat().st_mtime_ns > replay or run.replay(1).read_bytes() == expected.replay(1).read_bytes()


def test_a_checkpoint_found_damaged_after_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes back by itself. The restart after the loss finds the damage; the one after that counts."""
    config, profile = small.quick("l4"), small.cluster("in_process")
    expected, _ = small.complete_run(config, profile, tmp_path / "expected")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    original, left = Student.backward, [1]

    def backward(self: Student, fence: int, step: int, *tickets: Any) -> dict[str, float]:
        if left and self.peer == 1 and self._stage is not None and (self._stage.stage, step) == (1, 5):
            left.clear()
            flip(finished_stage(run) / "model.safetensors")
            raise PeerLostError("student 1: a peer is gone")
        return original(self, fence, step, *tickets)

    monkeypatch.setattr(Student, "backward", backward)
    session = small.start(setup, profile, run)
    summary = small.finish(session)
    (warning,) = warnings_of(session)
    assert "model.safetensors is damaged" in warning
    small.assert_equal(run, expected)
    assert figures(run) == figures(expected)
    assert summary["restarts"] == 1, "the restart after the loss came to nothing"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_checkpoint_is_not_evaluated(
    name: str, undisturbed: Callable[[str, dict[str, Any]], RunDirectory], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished_stage(undisturbed("lamol", {})), tmp_path / "copy")
    load_folder(folder)
    flip(folder / name, len((folder / name).read_bytes()) // 2)
    with pytest.raises(ModelError, match=rf"{folder}/{name} is damaged: .* Copy the checkpoint again"):
        load_folder(folder)
    with pytest.raises(ModelError, match=rf"{folder}/{name} is damaged"):
        build_model(ModelConfig(name=str(folder)), TaskTokenizer.load(finished_stage(undisturbed("lamol", {}))), 0)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_whose_checkpoints_were_removed_keeps_its_results(
    finished: bool, undisturbed: Callable[[str, dict[str, Any]], RunDirectory], tmp_path: Path
) -> None:
    run = RunDirectory(shutil.copytree(undisturbed("lamol", {}).path, tmp_path / "run"))
    shutil.rmtree(run.path / "checkpoints")
    if not finished:
        (run.path / "summary.json").unlink()
    setup = small.prepare(small.quick("lamol"))
    with pytest.raises(RunDirectoryError, match="holds no checkpoint, although stages are done"):
        small.start(setup, small.cluster("in_process"), run)
    assert run.scores() and (run.path / "summary.json").is_file() == finished, "nothing is removed"


def test_damaged_teachers_are_trained_again(tmp_path: Path) -> None:
    config, profile = small.quick("l2kd-word"), small.cluster("in_process")
    setup, run = small.stopped_run(config, tmp_path / "run", "learning mini.woz")
    teachers = RunDirectory.open(run.teachers())
    assert teachers.state().stages_done == 2
    expected = small.weights(teachers)
    flip(finished_stage(teachers) / "model.safetensors")
    session = small.start(setup, profile, run)
    small.finish(session)
    (warning,) = warnings_of(session)
    assert "teachers/checkpoints/stage-0" in warning
    assert small.weights(teachers) == expected


def test_storage_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, run = small.stopped_run(small.quick("lamol"), tmp_path / "run", "learning mini.woz")

    def refuse(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("ray_l4.store.checksums.file_sum", refuse)
    with pytest.raises(RunDirectoryError, match=r"student-0/\S+: cannot be read \(Input/output error\)"):
        small.start(setup, small.cluster("in_process"), run)
    assert run.state().stages_done == 1 and small.weights(run), "nothing is removed"


def _warned(run: RunDirectory) -> Path:
    write_warnings(run, [TrainingWarning("divergence", 0, 0, 7, "student 0 diverges")])
    return run.path / "warnings.json"


UNNEEDED: dict[str, Callable[[RunDirectory], Path]] = {
    "the timeline": lambda run: run.path / "timeline.parquet",
    "figures of steps": lambda run: run.steps(0, 1),
    "a score": lambda run: min((run.path / "scores").glob("stage-0.*.json")),
    "warnings": _warned,
}


@pytest.mark.parametrize("name", UNNEEDED)
def test_a_damaged_file_that_training_does_not_need_stops_no_run(
    name: str, undisturbed: Callable[[str, dict[str, Any]], RunDirectory], tmp_path: Path
) -> None:
    expected = undisturbed("lamol", {})
    setup, run = small.new_run(small.quick("lamol"), small.cluster("in_process"), tmp_path / "run")
    small.finish(small.start(setup, small.cluster("in_process"), run))
    (run.path / "summary.json").unlink()
    run.save_state(run.state().model_copy(update={"stages_done": 1}))
    path = UNNEEDED[name](run)
    cut(path)
    session = small.start(setup, small.cluster("in_process"), run)
    small.finish(session)
    said = [line for line in session.snapshot().events if "warning: " in line and path.name in line]
    assert bool(said) == (name != "warnings"), "those are read with the next warning, and for the report"
    assert not warnings_of(session), "no stage is learned again"
    small.assert_equal(run, expected)
    text = run_report(FinishedRun.open(run.path))
    assert (str(path) in text) == (name == "warnings")


def test_damage_that_learning_again_would_not_mend_ends_the_run(
    undisturbed: Callable[[str, dict[str, Any]], RunDirectory], tmp_path: Path
) -> None:
    run = RunDirectory(shutil.copytree(undisturbed("lamol", {}).path, tmp_path / "run"))
    setup, before = small.prepare(small.quick("lamol")), sorted(run.path.rglob("*"))
    damage = DamagedError(f"{run.path / 'teachers'}: damaged")
    with ThreadPoolExecutor(1) as disk, pytest.raises(DamagedError, match="teachers: damaged"):
        go_back(run, setup, damage, lambda done: pytest.fail("nothing is undone"), disk, pytest.fail)
    assert sorted(run.path.rglob("*")) == before
