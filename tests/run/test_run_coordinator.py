"""What the coordinator says and does beside training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_l4.cluster.membership import Membership
from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.run.session import start
from ray_l4.store.run_directory import RunDirectory, RunState
from tests.run import run_fixtures as small

NO_DROPOUT = {
    "from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400, "dropout": 0.0}
}
ONE_TASK = [{"name": "mini.woz", "train": 16, "test": 4}]


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"model": NO_DROPOUT, "distillation": {"batches": "shared"}}, True),
        ({"model": NO_DROPOUT}, False),
        ({"model": NO_DROPOUT, "peers": {"init": "own"}}, False),
        ({"model": NO_DROPOUT, "method": "lamol"}, False),
        ({"model": NO_DROPOUT, "distillation": {"schedule": "alternate_epochs"}}, False),
        ({"model": NO_DROPOUT, "method": "lwf"}, False),
        ({}, False),
    ],
    ids=["equal", "own batches", "own init", "one peer", "in turn", "taught", "dropout"],
)
def test_peers_that_will_stay_equal_are_warned_of(tmp_path: Path, changes: dict[str, object], warned: bool) -> None:
    config, profile = small.experiment(stream=ONE_TASK, **changes), small.cluster("in_process")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    session = start(setup, profile, run)
    small.finish(session)
    assert any("peers will stay equal" in event for event in session.snapshot().events) == warned
    if warned:
        assert all(abs(row["kd_lm"]) < 1e-6 for row in run.step_figures()), "and so they do"


def test_forgetting_over_epochs_is_given_where_every_epoch_was_scored(tmp_path: Path) -> None:
    config = small.experiment(evaluation={"when": "epoch", "max_new_tokens": 8})
    _, summary = small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    for student in ("0", "1"):
        assert summary["forgetting_over_epochs"][student] >= summary["forgetting"][student]


def test_curves_of_a_stage_learned_again_replace_the_first_ones(tmp_path: Path) -> None:
    profile = small.cluster("in_process")
    setup, run = small.new_run(small.experiment(), profile, tmp_path / "run")
    small.finish(start(setup, profile, run))
    steps = len(run.step_figures()) // 2
    run.save_state(RunState(stages_done=1))
    small.finish(start(setup, profile, run))
    assert [event.step for event in curves(run).Scalars("loss/student-0")] == list(range(steps))


def test_evaluators_start_after_the_students_unless_replay_may_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, config = small.cluster("in_process"), small.quick("lamol")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    started: list[tuple[str, int, bool]] = []

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            done = run.state().stages_done
            started.append((name, done, any(run.path.glob(f"states/stage-{done}.*"))))
            return original(*arguments)

        return noted

    monkeypatch.setattr(Membership, "await_start", noting("students", Membership.await_start))
    monkeypatch.setattr(LocalSpawner, "evaluators", noting("evaluators", LocalSpawner.evaluators))
    small.run_with_stops(setup, profile, run, 13)
    run.save_state(RunState(stages_done=1))
    small.finish(start(setup, profile, run))
    assert [name for name, _, _ in started[:2]] == ["students", "evaluators"]
    assert ("students", 1, True) in started, "a state of the second stage: it had its replay"
    for (first, done, has_state), _ in zip(started[::2], started[1::2], strict=True):
        assert first == ("evaluators" if done == 1 and not has_state else "students")
    assert started[-2][0] == "evaluators"


def curves(run: RunDirectory) -> EventAccumulator:
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return events


@pytest.mark.slow
def test_students_that_learn_in_turn_share_a_time_axis(tmp_path: Path) -> None:
    """Resumed or not: the curves of the stage that is learned again are replaced, and no others."""
    profile = small.cluster("in_process")
    config = small.quick("l4-released", training={"epochs": 2})
    setup, run = small.stopped_run(config, tmp_path / "run", "learning mini.woz")
    small.finish(start(setup, profile, run))
    for student in (0, 1):
        figures = [row for row in run.step_figures() if row["student"] == student]
        events = curves(run).Scalars(f"loss/student-{student}")
        assert [event.step for event in events] == list(range(len(figures)))
        assert [event.value for event in events] == pytest.approx([row["loss"] for row in figures])


def test_models_that_are_trained_side_by_side_have_curves_of_their_own(tmp_path: Path) -> None:
    profile = small.cluster("in_process")
    setup, run = small.new_run(small.quick("single-qa", training={"epochs": 1}), profile, tmp_path / "run")
    Coordinator(new_context(setup, profile, run), LocalSpawner, 2).run()
    for stage, task in enumerate(("mini.rest", "mini.woz")):
        expected = [row["loss"] for row in run.step_figures() if row["stage"] == stage]
        assert [event.value for event in curves(run).Scalars(f"loss/{task}")] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["lamol", "l4-released", "single-qa-lm", "l2kd-seq"])
def test_the_steps_of_the_whole_run_are_known_in_the_last_stage(tmp_path: Path, method: str) -> None:
    """Also where a step is one student's, or two stages go side by side; teachers' steps count as well."""
    profile = small.cluster("in_process")
    setup, run = small.new_run(small.quick(method, training={"epochs": 1}), profile, tmp_path / "run")
    coordinator = Coordinator(new_context(setup, profile, run), LocalSpawner, 2)
    coordinator.run()
    now = coordinator.progress.snapshot()
    assert now.steps_done == now.steps_total
    assert now.remaining_seconds == 0
    assert (now.phase, now.jobs_open) == ("done", 0)


@pytest.mark.slow
def test_learning_lifts_the_score(tmp_path: Path) -> None:
    """The whole of it, from grammar to score: a model that has learned says what it should."""
    config = small.experiment(
        stream=[{"name": "mini.rest", "train": 120, "test": 20}],
        model={
            "from_scratch": {"layers": 1, "width": 64, "heads": 2, "positions": 96, "vocabulary": 1000, "dropout": 0}
        },
        training={"epochs": 10, "batch_size": 8},
        optim={"variant": "torch", "lr": 6e-3, "eps": 1e-8, "warmup": 0.3},
        peers={"init": "own"},
        evaluation={},
    )
    _, summary = small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    assert all(score > 50 for score in summary["average_accuracy"].values())
