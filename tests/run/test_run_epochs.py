"""Epochs that are trained as one: nobody waits between them, and each has its own file of figures all the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_l4.cluster.handles import StudentHandle
from ray_l4.run.epoch_figures import EpochFigures
from ray_l4.setup.setup import prepare
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.states import Learning, Position, State
from tests.run import run_fixtures as small


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often students were asked to run a step's forward pass by a call of its own, and to end one alone."""
    counted: Counter[str] = Counter()
    for name in ("forward", "backward"):
        own = getattr(StudentHandle, name)

        def count(self: StudentHandle, *arguments: Any, name: str = name, own: Any = own) -> Any:
            counted[name] += 1
            return own(self, *arguments)

        monkeypatch.setattr(StudentHandle, name, count)
    return counted


@pytest.mark.parametrize(
    ("changes", "breaks"),
    [
        ({}, 1),
        ({"evaluation": {"when": "epoch"}}, 3),
        ({"evaluation": {"validation": 0.2}}, 3),
    ],
    ids=["the stage is scored", "every epoch is scored", "every epoch is validated"],
)
def test_students_wait_only_where_something_is_due(
    changes: dict[str, Any], breaks: int, calls: Counter[str], tmp_path: Path
) -> None:
    config = small.quick("l4", **changes)
    run, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    stages, students = 2, 2
    assert calls == {"forward": breaks * stages * students, "backward": breaks * stages * students}
    rows = list(run.step_figures())
    for epoch in (1, 2, 3):
        own = [row for row in rows if row["epoch"] == epoch and row["stage"] == 0 and row["student"] == 1]
        steps = [row["step"] for row in own]
        assert steps == list(range(steps[0], steps[0] + len(steps))) and len(steps) in (8, 10)
        assert steps[0] == (epoch - 1) * len(steps)


def test_students_that_take_turns_train_one_epoch_at_a_time(calls: Counter[str], tmp_path: Path) -> None:
    config = small.quick("l4", distillation={"schedule": "alternate_epochs"})
    small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    assert calls["backward"] == 3 * 2 * 2  # epochs, stages, turns


def test_the_weights_are_those_of_epochs_trained_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, profile = small.quick("l4"), small.cluster("in_process")
    as_one, _ = small.complete_run(config, profile, tmp_path / "as_one")
    monkeypatch.setattr("ray_l4.run.stage_result.StageResult.next_pause", lambda self, epoch: epoch)
    one_by_one, _ = small.complete_run(config, profile, tmp_path / "one_by_one")
    small.assert_equal(as_one, one_by_one)
    assert _losses(as_one) == _losses(one_by_one)


def test_a_run_that_stops_within_epochs_trained_as_one_goes_on_to_the_same_end(tmp_path: Path) -> None:
    config = small.long_enough(checkpoint={"every_steps": 1})
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    for wanted in (1, 20, 21, 57):  # the first step, the last of an epoch, the first of the next, amid one
        run = _stopped_after(config, tmp_path / f"run-{wanted}", wanted)
        setup = prepare(config)
        session = small.start(setup, small.cluster("in_process"), run)
        small.finish(session)
        small.assert_equal(run, expected)
        assert _losses(run) == _losses(expected), wanted


def _losses(run: RunDirectory) -> list[tuple[Any, ...]]:
    """The figures of all steps that do not depend on time."""
    return [tuple(row[name] for name in ("stage", "epoch", "step", "student", "loss")) for row in run.step_figures()]


def _stopped_after(config: Any, folder: Path, steps: int) -> RunDirectory:
    """A run that was stopped when the figures of so many steps were known."""
    profile = small.cluster("in_process", exchange={"transport": "in_process", "steps_ahead": 1})
    setup, run = small.new_run(config, profile, folder)
    session = small.start(setup, profile, run)
    while session.snapshot().steps_done < steps:
        session.wait(0.001)
    session.close()
    return run


def _figures(folder: Path) -> EpochFigures:
    return EpochFigures(RunDirectory(folder), {0: [1, 3, 4]})


def _written(folder: Path, epoch: int) -> list[tuple[int, int]]:
    table = pq.read_table(RunDirectory(folder).steps(0, epoch))
    return [(row["step"], row["student"]) for row in table.to_pylist()]


def test_an_epoch_is_written_when_the_next_one_begins(tmp_path: Path) -> None:
    figures = _figures(tmp_path)
    for step in range(3):
        for student in (0, 1):
            figures.add(0, step, student, {"loss": 1.0})
        assert RunDirectory(tmp_path).steps(0, 1).is_file() == (step == 2)
    assert _written(tmp_path, 1) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(row["epoch"], row["step"]) for row in figures.all()] == [(2, 2), (2, 2)]
    figures.finish()
    assert _written(tmp_path, 2) == [(2, 0), (2, 1)] and figures.all() == []
    assert [figures.epoch_of(0, step) for step in range(5)] == [1, 1, 2, 2, 3]


def test_the_figures_of_a_state_belong_to_the_epoch_under_way(tmp_path: Path) -> None:
    figures = _figures(tmp_path)
    known = [{"stage": 0, "epoch": 2, "step": 2, "student": 0, "loss": 1.0}]
    figures.continue_from(State(Position(2, [Learning(0, 0, 0, 3)]), known, {}))
    figures.add(0, 3, 0, {"loss": 0.5})
    figures.add(0, 4, 0, {"loss": 0.25})
    assert _written(tmp_path, 2) == [(2, 0), (3, 0)]
