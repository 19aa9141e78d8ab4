"""The state of a run on disk: stages, wall time, memory, restarts, and students that are lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ray_l4.run import state_keeper
from ray_l4.run.context import RunContext
from ray_l4.run.state_keeper import StateKeeper
from ray_l4.setup.setup import Setup
from ray_l4.store.run_directory import RunState
from tests.run import run_fixtures as small


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(state_keeper.time, "monotonic", lambda: self.now)


class Pushes:
    """Notes the state on disk whenever the run directory is to be copied."""

    def __init__(self, context: RunContext) -> None:
        self.states: list[RunState] = []
        self._directory = context.directory

    def push(self) -> None:
        self.states.append(self._directory.state())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    """The context of a run that has done nothing yet."""
    setup: Setup = None  # type: ignore[assignment]  # the state does not depend on it
    return small.bare_context(setup, tmp_path)


def commit(
    keeper: StateKeeper,
    stages_done: int,
    memory: Mapping[str, int] | None = None,
    lost: Mapping[int, str] | None = None,
) -> None:
    keeper.commit(stages_done, memory or {}, lost or {})


def test_a_new_run_has_done_nothing(context: RunContext) -> None:
    assert StateKeeper(context).stages_done == 0
    assert context.directory.state() == RunState()


def test_a_commit_is_on_disk_at_once(context: RunContext, clock: Clock) -> None:
    keeper = StateKeeper(context)
    clock.now += 5
    commit(keeper, 2, {"student-0": 700}, {1: "it died"})
    assert keeper.stages_done == 2
    expected = RunState(
        stages_done=2, wall_seconds=5, peak_memory_bytes={"student-0": 700}, lost_students={1: "it died"}
    )
    assert context.directory.state() == expected


def test_wall_time_adds_up_over_commits_and_resumes_without_the_pause(context: RunContext, clock: Clock) -> None:
    keeper = StateKeeper(context)
    for seconds, total in ((5, 5.0), (7, 12.0)):
        clock.now += seconds
        commit(keeper, 1)
        assert context.directory.state().wall_seconds == total
    clock.now += 10_000  # the run was stopped
    resumed = StateKeeper(context)
    assert resumed.stages_done == 1
    clock.now += 3
    commit(resumed, 2)
    assert context.directory.state().wall_seconds == 15.0


def test_the_time_of_the_teachers_is_counted_once(context: RunContext, clock: Clock) -> None:
    clock.now += 1
    commit(StateKeeper(context, earlier_seconds=40.0), 1)
    assert context.directory.state().wall_seconds == 40.0
    resumed = StateKeeper(context, earlier_seconds=40.0)
    clock.now += 2
    commit(resumed, 2)
    assert context.directory.state().wall_seconds == 42.0


def test_memory_is_the_largest_of_all_commits_for_each_worker(context: RunContext) -> None:
    keeper = StateKeeper(context)
    commit(keeper, 1, {"student-0": 5, "student-1": 7})
    commit(keeper, 2, {"student-0": 9, "evaluator-0": 1})
    commit(StateKeeper(context), 3, {"student-0": 2, "student-1": 8})
    assert context.directory.state().peak_memory_bytes == {"student-0": 9, "student-1": 8, "evaluator-0": 1}


def test_lost_students_accumulate(context: RunContext) -> None:
    keeper = StateKeeper(context)
    commit(keeper, 1, lost={1: "it died"})
    commit(keeper, 2, lost={})
    commit(keeper, 3, lost={2: "its node is gone"})
    assert context.directory.state().lost_students == {1: "it died", 2: "its node is gone"}
    resumed = StateKeeper(context)
    commit(resumed, 4, lost={0: "it hung"})
    assert set(context.directory.state().lost_students) == {0, 1, 2}


def test_restarts_are_counted_and_written_with_the_next_commit(context: RunContext) -> None:
    keeper = StateKeeper(context)
    for _ in range(2):
        keeper.count_restart()
    assert context.directory.state().restarts == 0
    assert keeper.stages_done == 0
    commit(keeper, 1)
    assert context.directory.state().restarts == 2
    resumed = StateKeeper(context)
    resumed.count_restart()
    commit(resumed, 2)
    assert context.directory.state().restarts == 3


def test_a_commit_writes_the_timeline_and_then_has_the_run_directory_copied(context: RunContext) -> None:
    """A copy that holds a state holds everything that the state speaks of."""
    pushes = Pushes(context)
    context = replace(context, mirroring=pushes)  # type: ignore[arg-type]
    context.timeline.add("student 0", "training", "mini.rest, epoch 1", 3.0)
    commit(StateKeeper(context), 1)
    assert [state.stages_done for state in pushes.states] == [1]
    assert (context.directory.path / "timeline.parquet").is_file()
