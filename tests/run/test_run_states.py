"""A run that is interrupted within its stages and goes on from its states ends as an undisturbed one."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import DependencyLostError, PeerLostError, RunDirectoryError
from ray_l4.run.context import StoppedError
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.run.states import States
from ray_l4.setup.setup import Setup
from ray_l4.store import states as files
from ray_l4.store.run_directory import RunDirectory
from ray_l4.workers.evaluator import Evaluator
from ray_l4.workers.student import Student
from tests.run import run_fixtures as small

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "l4": ("l4", {}),
    "every epoch scored": ("l4", {"evaluation": {"when": "epoch"}}),
    "students in turn": ("l4", {"distillation": {"schedule": "alternate_epochs"}}),
    "validation": ("lamol", {"evaluation": {"validation": 0.25, "patience": 1}}),
    "a guard": ("ewc", {}),
    "models side by side": ("single-qa", {}),
    "a teacher that is the student before the task": ("lwf", {}),
    "batches and examples of their own": ("l4", {"distillation": {"batches": "own"}, "peers": {"subset": 0.7}}),
    "answers of their own": ("l4-onpolicy", {"distillation": {"on_policy": 0.5}}),
    "a teacher that is shown the answer": ("sdft", {}),
}


def figures(run: RunDirectory, left_out: str = "_seconds") -> list[dict[str, Any]]:
    """The figures of all steps but their times."""
    return [{k: v for k, v in row.items() if not re.search(left_out, k)} for row in run.step_figures()]


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_stopped_again_and_again_ends_as_an_undisturbed_one(case: str, tmp_path: Path) -> None:
    method, changes = CASES[case]
    config, profile = small.quick(method, **changes), small.cluster("in_process")
    expected, _ = small.complete_run(config, profile, tmp_path / "expected")
    setup, run = small.new_run(config, profile, tmp_path / "run")

    def look() -> None:
        assert files.states(run, run.state().stages_done), "the stage goes on from where it was"

    small.run_with_stops(setup, profile, run, 13, look)
    small.assert_equal(run, expected)
    # What a student sends while it waits for its turn counts for its own next step, and is not part of a state.
    left_out = "_seconds|bytes_sent" if case == "students in turn" else "_seconds"
    assert figures(run, left_out) == figures(expected, left_out)
    assert not list((run.path / "states").glob("*")), "states are removed with the end of their stage"


def test_states_are_taken_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every minute by ``every_minutes``, however many steps it took."""
    clock, taken = [0.0], list[int]()

    def write(run: RunDirectory, position: files.Position, *others: Any) -> Path:
        taken.append(position.num_steps)
        return files.write_state(run, position, *others)

    def backward(self: Student, fence: int, step: int, *tickets: Any) -> dict[str, float]:
        clock[0] += 12.0
        return original(self, fence, step, *tickets)

    original = Student.backward
    monkeypatch.setattr(Student, "backward", backward)
    monkeypatch.setattr("ray_l4.run.states.write_state", write)
    monkeypatch.setattr("ray_l4.run.states.time", SimpleNamespace(monotonic=lambda: clock[0]))
    config = small.quick("finetune", checkpoint={"every_minutes": 1})
    small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    assert taken[0] == 5 and len(taken) > 3, "five steps of 12 s make a minute"
    steps = [later - earlier for earlier, later in pairwise(taken) if later > earlier]
    assert min(steps) >= 5, "later if one that comes due has to wait for the one before"


def test_replay_on_record_is_not_generated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, profile = small.quick("lamol"), small.cluster("in_process")
    expected, _ = small.complete_run(config, profile, tmp_path / "expected")
    _, run = small.stopped_run(config, tmp_path / "run", "learning mini.woz")
    record = run.replay(1).read_bytes()
    monkeypatch.setattr("ray_l4.workers.evaluator.generate_replay", lambda *_: pytest.fail("generated again"))
    small.finish(small.start(small.prepare(config), profile, run))
    assert run.replay(1).read_bytes() == record
    small.assert_equal(run, expected)


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_after_a_loss_all_go_back_to_the_newest_state(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is an error of a call, which an object of this process can raise as well as an actor."""
    config = small.quick("l4", checkpoint={"every_steps": steps})
    profile = small.cluster("in_process")
    expected, _ = small.complete_run(small.quick("l4"), profile, tmp_path / "expected")
    learned: list[int] = []
    original, losses = Student.backward, [5, 17, 17, 26]

    def backward(self: Student, fence: int, step: int, *tickets: Any) -> dict[str, float]:
        if losses and self.peer == 1 and self._stage is not None and self._stage.stage == 0 and step == losses[0]:
            losses.pop(0)
            raise PeerLostError("student 1: its process died")
        learned.append(step)
        return original(self, fence, step, *tickets)

    monkeypatch.setattr(Student, "backward", backward)
    monkeypatch.setattr("ray_l4.cluster.membership.Membership.roll_call", _lost_1)
    run, summary = small.complete_run(config, profile, tmp_path / "run")
    small.assert_equal(run, expected)
    assert figures(run) == figures(expected)
    assert summary["restarts"] == 4
    again = len(learned) - len(figures(expected))
    assert again <= 4 * 2 * (steps + profile.exchange.steps_ahead + 1)


def test_a_state_that_is_being_written_at_a_loss_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its students have handed it over, so whoever is lost now does not take it along, however slow the disk is."""
    config, profile = small.quick("l4", checkpoint={"every_steps": 5}), small.cluster("in_process")
    begun, lost_while_writing = Event(), list[bool]()
    original, returned_to = Student.backward, list[int]()

    def write(run: RunDirectory, position: files.Position, *others: Any) -> Path:
        begun.set()
        time.sleep(0.3)
        folder = files.write_state(run, position, *others)
        begun.clear()
        return folder

    def backward(self: Student, fence: int, step: int, *tickets: Any) -> dict[str, float]:
        if self.peer == 1 and not lost_while_writing and begun.is_set():
            lost_while_writing.append(True)
            raise PeerLostError("student 1: its process died")
        if lost_while_writing and not returned_to:
            returned_to.append(step)
        return original(self, fence, step, *tickets)

    monkeypatch.setattr("ray_l4.run.states.write_state", write)
    monkeypatch.setattr(Student, "backward", backward)
    monkeypatch.setattr("ray_l4.cluster.membership.Membership.roll_call", _lost_1)
    small.complete_run(config, profile, tmp_path / "run")
    assert lost_while_writing and returned_to == [5], "the first state, which was not on disk yet"


def _lost_1(membership: Any) -> Any:
    from ray_l4.cluster.membership import RollCall

    membership.raise_fence()
    return RollCall({1: "its process died"}, {0: 0})


def stopped_after(steps: int, setup: Setup, profile: ClusterConfig, run: RunDirectory) -> None:
    context = new_context(setup, profile, run)
    Coordinator(replace(context, progress=small.StopAfter(context, steps)), LocalSpawner, 1).run()


def test_a_damaged_state_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    config, profile = small.quick("lamol", checkpoint={"every_steps": 3}), small.cluster("in_process")
    expected, _ = small.complete_run(config, profile, tmp_path / "expected")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    with pytest.raises(StoppedError):
        stopped_after(14, setup, profile, run)
    newest, older = files.states(run, 0)
    part = newest / "student-0.rank-0.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(RunDirectoryError, match="damaged"):
        files.read_state(newest)
    assert files.read_state(older).position.num_steps < files.read_position(newest).num_steps
    session = small.start(setup, profile, run)
    small.finish(session)
    assert any("goes on from an earlier point" in line for line in session.snapshot().events)
    small.assert_equal(run, expected)
    assert figures(run) == figures(expected)


def test_without_a_setting_of_its_own_a_short_stage_writes_no_state(tmp_path: Path) -> None:
    """Every five minutes is the default; a state is three times as large as the weights."""
    run, _ = small.complete_run(small.quick("lamol"), small.cluster("in_process"), tmp_path / "run")
    assert not (run.path / "states").exists()


def test_without_a_peer_states_are_taken_of_students_that_are_level_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student 0 does not learn from the lost student 2, so it is a step ahead of student 1 when the loss is noticed."""
    pairs = [[0, 1], [1, 0], [1, 2], [2, 1]]
    peers = {"count": 3, "topology": pairs, "on_peer_loss": "continue"}
    profile, original, dead = small.cluster("in_process"), Student.forward, [False]

    def forward(self: Student, fence: int, step: int, readers: Any) -> Any:
        if self.peer == 2 and step == 12:
            dead[0] = True
        if self.peer == 2 and dead[0]:
            raise PeerLostError("student 2: its process died")
        return original(self, fence, step, readers)

    def rejoin(self: Student, fence: int) -> int:
        if self.peer == 2:
            raise PeerLostError("student 2: its process died")
        return original_rejoin(self, fence)

    original_rejoin = Student.rejoin
    monkeypatch.setattr(Student, "forward", forward)
    monkeypatch.setattr(Student, "rejoin", rejoin)
    expected, _ = small.complete_run(small.quick("l4", peers=peers), profile, tmp_path / "expected")
    dead[0] = False
    config = small.quick("l4", peers=peers, checkpoint={"every_steps": 1})
    setup, run = small.new_run(config, profile, tmp_path / "run")

    def look() -> None:
        # A stop while one is behind the others writes no state; the one before the loss is there.
        newest = files.read_position(files.states(run, run.state().stages_done)[0])
        assert len({worker.next_step for worker in newest.workers}) == 1

    assert list(small.run_with_stops(setup, profile, run, 14, look)["lost_students"]) == ["2"]
    small.assert_equal(run, expected)


@pytest.mark.parametrize("error", [DependencyLostError, PeerLostError])
def test_weights_that_are_lost_before_they_are_scored_are_read_from_the_disk(
    error: type[PeerLostError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of a student whose node is gone: no student is lost when the last scores are taken."""
    config, profile = small.quick("lamol"), small.cluster("in_process")
    expected, _ = small.complete_run(config, profile, tmp_path / "expected")
    original, left = Evaluator.answer, [2]

    def answer(self: Evaluator, checkpoint: str, *arguments: Any) -> Any:
        if checkpoint.startswith("stage-1") and left[0]:
            left[0] -= 1
            raise error("evaluator 0: the node that held the answer is gone")
        return original(self, checkpoint, *arguments)

    monkeypatch.setattr(Evaluator, "answer", answer)
    run, _ = small.complete_run(config, profile, tmp_path / "run")
    assert left == [0]
    small.assert_equal(run, expected)


def test_states_are_found_the_newest_first(tmp_path: Path) -> None:
    """By number: a restart after step 12 is progress over one after step 8."""
    run = RunDirectory(tmp_path)
    for steps in (8, 12, 100, 9):
        files.write_state(run, files.Position(1, [files.Learning(0, 0, 0, steps)]), [], {})
    assert [files.read_position(folder).num_steps for folder in files.states(run, 0)] == [100, 12, 9, 8]
    files.discard_states(run, 0, keep=2)
    assert [files.read_position(folder).num_steps for folder in files.states(run, 0)] == [100, 12]


def test_a_state_of_fewer_students_stays_although_it_adds_up_to_fewer_steps(tmp_path: Path) -> None:
    _, run = small.new_run(small.quick("l4"), small.cluster("in_process"), tmp_path / "run")
    for steps in (297, 300, 240):
        (run.path / "states" / f"stage-1.steps-{steps}").mkdir(parents=True)
    files.discard_states(run, 1, 2, run.path / "states" / "stage-1.steps-240")
    assert [path.name for path in files.states(run, 1)] == ["stage-1.steps-240"]
    (run.path / "states" / "stage-1.steps-244").mkdir()
    (run.path / "states" / "stage-1.steps-248").mkdir()
    files.discard_states(run, 1, 2, run.path / "states" / "stage-1.steps-248")
    assert [path.name for path in files.states(run, 1)] == ["stage-1.steps-248", "stage-1.steps-244"]


@pytest.mark.parametrize("change", ["damage", "ranks"])
def test_a_state_that_cannot_be_used_makes_room_for_new_ones(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of more steps than the next ones are, and would be taken for the newest for ever."""
    config, profile = small.quick("lamol", checkpoint={"every_steps": 3, "states": 1}), small.cluster("in_process")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    with pytest.raises(StoppedError):
        stopped_after(15, setup, profile, run)
    (unusable,) = files.states(run, 0)
    before = files.read_position(unusable).num_steps
    if change == "damage":
        part = unusable / "student-0.rank-0.safetensors"
        part.write_bytes(part.read_bytes()[:-1])
    else:
        monkeypatch.setattr(States, "_unfit", lambda *_: "it is of students of another number of ranks.")
    with pytest.raises(StoppedError):
        stopped_after(8, setup, profile, run)
    monkeypatch.undo()
    (newest,) = files.states(run, 0)
    assert 8 <= files.read_position(newest).num_steps < before
