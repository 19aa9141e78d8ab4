"""Validation: the best epoch of a stage is its result, whatever the method, and if the run is interrupted too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import PeerError
from ray_l4.learner import validation as learner_validation
from ray_l4.methods import graph_of
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.page import render
from ray_l4.report.markdown import run_report
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.run.session import start
from ray_l4.run.validation import ValidationCurve
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.workers import student as student_module
from tests.run import run_fixtures as small

IN_PROCESS = small.cluster("in_process")
slow = pytest.mark.slow
SECTIONS: dict[str, Any] = {
    "stream": [{"name": "mini.rest", "train": 16, "test": 4}, {"name": "mini.woz", "train": 24, "test": 4}],
    "training": {"epochs": 6, "batch_size": 4},
    "optim": {"lr": 6e-2},
    "replay": {"ratio": 0.2, "max_length": 30},
}
"""Few examples and a high learning rate: the best epoch is seldom the last one."""


def validated(method: str, **evaluation: Any) -> ExperimentConfig:
    return small.quick(method, **SECTIONS, evaluation={"validation": 0.4, "patience": 2, **evaluation})


def records(run: RunDirectory) -> dict[int, dict[str, Any]]:
    found = sorted((run.path / "validation").iterdir())
    return {int(path.stem.partition("-")[2]): read_json(path) for path in found}


def check_records(run: RunDirectory, summary: dict[str, Any]) -> None:
    """The records, checkpoints, scores and steps of a run agree on which epoch is the result of each stage."""
    patience, epochs = 2, run.experiment().training.epochs
    students = sorted(graph_of(run.experiment()).students)
    for stage, record in records(run).items():
        means = record["means"]
        assert record["epoch"] == means.index(min(means)) + 1
        assert len(means) == min(epochs, record["epoch"] + patience)
        assert sorted(map(int, record["losses"])) == students
        for epoch, mean in enumerate(means):
            assert mean == pytest.approx(sum(own[epoch] for own in record["losses"].values()) / len(students))
        folders = {path.name for path in (run.path / "checkpoints" / f"stage-{stage}").iterdir()}
        assert folders == {f"epoch-{record['epoch']}"}
        trained = {row["epoch"] for row in run.step_figures() if row["stage"] == stage}
        assert trained == set(range(1, len(means) + 1))
    assert {cell.epoch for cell in run.scores() if cell.stage == 0} == {records(run)[0]["epoch"]}
    assert summary["validation"] == {str(stage): record for stage, record in records(run).items()}
    for student in map(str, students):
        assert None not in summary["final"][student].values()


@pytest.mark.parametrize(
    "method",
    [
        "l4",
        "ewc",
        "multi-qa",
        "l2kd-word",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("lwf", "l2kd-seq", "er")),
    ],
)
def test_the_best_epoch_is_the_result_of_its_stage(method: str, tmp_path: Path) -> None:
    run, summary = small.complete_run(validated(method), IN_PROCESS, tmp_path / "run")
    check_records(run, summary)
    finished = FinishedRun.open(run.path)
    assert finished.final_cell(0, "mini.woz") in run.scores()
    best = records(run)[0]["epoch"]
    assert f"{best} of {len(records(run)[0]['means'])}" in run_report(finished)
    assert ">Validation<" in render([finished])
    if run.teachers().exists():
        check_records(RunDirectory.open(run.teachers()), RunDirectory.open(run.teachers()).summary())


def test_the_next_stage_begins_from_the_best_epoch(tmp_path: Path) -> None:
    """Keeping every epoch's checkpoint changes no number, and the anchor of EWC is the best epoch's weights."""
    only_best, _ = small.complete_run(validated("ewc"), IN_PROCESS, tmp_path / "best")
    every, _ = small.complete_run(validated("ewc", when="epoch"), IN_PROCESS, tmp_path / "every")
    assert records(only_best) == records(every)
    record = records(every)[0]
    assert record["epoch"] < len(record["means"]), "otherwise this shows nothing"
    all_weights = small.weights(every)
    assert len(all_weights) == sum(len(own["means"]) for own in records(every).values())
    assert {name: all_weights[name] for name in small.weights(only_best)} == small.weights(only_best)
    best = load_file(every.checkpoint(0, record["epoch"], 0) / "model.safetensors")
    guard = load_file(every.guard(0, 0))
    anchors = [guard[name] for name in guard if "anchor" in name]
    assert anchors and all(any((own.shape == a.shape) and (own == a).all() for own in best.values()) for a in anchors)


def test_models_side_by_side_stop_at_epochs_of_their_own(tmp_path: Path) -> None:
    longer = SECTIONS | {"training": {"epochs": 8, "batch_size": 4}}
    config = small.quick("single-qa-lm", **longer, evaluation={"validation": 0.4, "patience": 2})
    one, _ = small.complete_run(config, IN_PROCESS, tmp_path / "one")
    setup, both = small.new_run(config, IN_PROCESS, tmp_path / "both")
    summary = Coordinator(new_context(setup, IN_PROCESS, both), LocalSpawner, 2).run()
    assert records(one) == records(both)
    assert len({len(record["means"]) for record in records(both).values()}) == 2, "they stop at different epochs"
    small.assert_equal(both, one)
    check_records(both, summary)


@pytest.mark.parametrize("method", ["l4", pytest.param("l2kd-word", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_like_an_undisturbed_one(method: str, tmp_path: Path) -> None:
    config = validated(method)
    undisturbed, expected = small.complete_run(config, IN_PROCESS, tmp_path / "undisturbed")
    setup, run = small.stopped_run(config, tmp_path / "stopped", "learning mini.woz")
    found = small.finish(start(setup, IN_PROCESS, run))
    small.assert_equal(run, undisturbed)
    assert found["validation"] == expected["validation"]
    assert found["score_matrix"] == expected["score_matrix"]
    steps = [curve(own, "loss/student-0") for own in (run, undisturbed)]
    assert set(steps[0]) == set(steps[1]), "the second stage begins where the first one stopped"


def curve(run: RunDirectory, tag: str) -> list[int]:
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_curves_show_the_loss_at_the_last_step_of_each_epoch(tmp_path: Path) -> None:
    run, _ = small.complete_run(validated("finetune"), IN_PROCESS, tmp_path / "run")
    steps = curve(run, "validation_loss/student-0")
    assert len(steps) == sum(len(record["means"]) for record in records(run).values())
    assert steps == sorted(steps) and set(steps) <= set(curve(run, "loss/student-0"))


def test_students_on_ray_are_validated_alike(tmp_path: Path, ray_cluster: None) -> None:
    profile = small.cluster("object_store", evaluators={"count": 2})
    run, _ = small.complete_run(validated("l4"), profile, tmp_path / "ray")
    expected, _ = small.complete_run(validated("l4"), IN_PROCESS, tmp_path / "expected")
    assert records(run) == records(expected)
    small.assert_equal(run, expected)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_module, "validation_loss", lambda learner, tokens, stage: float("nan"))
    assert learner_validation.validation_loss is not student_module.validation_loss
    with pytest.raises(PeerError, match=r"student 0, mini.rest, epoch 1: the validation loss is not finite.*optim.lr"):
        small.complete_run(validated("finetune"), IN_PROCESS, tmp_path / "run")


@given(st.lists(st.lists(st.floats(0, 9), min_size=3, max_size=3), min_size=1, max_size=12), st.integers(1, 4))
def test_training_stops_once_patience_runs_out(losses: list[list[float]], patience: int) -> None:
    curve = ValidationCurve()
    for epoch, values in enumerate(losses, start=1):
        curve.add(dict(enumerate(values)))
        means = [sum(own) / 3 for own in losses[:epoch]]
        assert curve.means[curve.best - 1] == min(curve.means)
        assert all(mean > curve.means[curve.best - 1] for mean in curve.means[: curve.best - 1]), "the first of several"
        assert means == pytest.approx(curve.means)
        assert not curve.exhausted(None)
        assert curve.exhausted(patience) == (epoch - curve.best >= patience)


@pytest.mark.parametrize(
    ("losses", "best", "means"),
    [
        ([{0: 1.0, 1: 9.0}, {0: 2.0, 1: 2.0}, {0: 3.0}], 2, [1.0, 2.0, 3.0]),
        ([{0: 1.0, 1: 1.0}, {0: 0.5, 1: 9.0}, {0: 0.75}], 3, [1.0, 0.5, 0.75]),
    ],
    ids=["the best epoch stays", "a new epoch is compared with it over the students that are left"],
)
def test_a_lost_student_does_not_make_an_earlier_epoch_the_best(
    losses: list[dict[int, float]], best: int, means: list[float]
) -> None:
    """Only the checkpoints of epochs that were the best when they ended are on disk."""
    curve = ValidationCurve()
    chosen = []
    for own in losses:
        curve.add(own)
        chosen.append(curve.best)
    assert curve.means == means and curve.best == best
    assert all(now in (before, epoch) for before, now, epoch in zip(chosen, chosen[1:], (2, 3), strict=False))
