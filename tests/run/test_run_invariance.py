"""The strongest test of the project: what a run learns does not depend on where and how it was run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.run import scoring
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> small.Finished:
    """In one process, with one evaluator."""
    return small.complete_run(small.experiment(), small.cluster("in_process"), tmp_path_factory.mktemp("r") / "run")


@pytest.fixture(scope="module", params=["object_store", "collective"])
def on_ray(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> small.Finished:
    """Every student in a process of its own, with two evaluators."""
    profile = small.cluster(request.param, evaluators={"count": 2})
    return small.complete_run(small.experiment(), profile, tmp_path_factory.mktemp("r") / "run")


def generated(run: RunDirectory) -> list[dict[str, Any]]:
    return pq.read_table(run.path / "replay" / "stage-1.parquet").to_pylist()


def test_weights_are_equal_bit_for_bit_on_ray_and_with_two_evaluators(
    reference: small.Finished, on_ray: small.Finished
) -> None:
    expected, found = small.weights(reference[0]), small.weights(on_ray[0])
    assert len(expected) == 4, "two stages of two students"
    assert found.keys() == expected.keys()
    assert [name for name in expected if expected[name] != found[name]] == []


def test_replay_does_not_depend_on_how_it_was_split(reference: small.Finished, on_ray: small.Finished) -> None:
    assert len(generated(reference[0])) == 20
    assert generated(on_ray[0]) == generated(reference[0])


def test_scores_and_figures_are_equal(reference: small.Finished, on_ray: small.Finished) -> None:
    assert small.scores(on_ray[0]) == small.scores(reference[0])
    for key in ("score_matrix", "final", "average_accuracy", "forgetting", "backward_transfer", "replay"):
        assert on_ray[1][key] == reference[1][key]


def test_losses_of_every_step_are_equal(reference: small.Finished, on_ray: small.Finished) -> None:
    def losses(run: RunDirectory) -> list[tuple[Any, ...]]:
        names = ("stage", "step", "student", "loss", "nll_qa", "kd_qa", "nll_lm", "kd_lm", "grad_norm", "lr")
        return [tuple(row[name] for name in names) for row in run.step_figures()]

    assert len(losses(reference[0])) > 20
    assert losses(on_ray[0]) == losses(reference[0])


def test_students_teach_each_other(reference: small.Finished) -> None:
    run, _ = reference
    weights = small.weights(run)
    mine, other = (weights[f"checkpoints/stage-1/epoch-2/student-{peer}/model.safetensors"] for peer in range(2))
    assert mine != other
    assert all(row["kd_qa"] > 0 for row in run.step_figures() if row["step"] > 1)
    assert all(row["bytes_sent"] > 0 for row in run.step_figures())


def test_lambda_zero_is_lamol_over_a_whole_run(tmp_path: Path) -> None:
    """Student 0 of l4 without distillation: same weights as lamol, replay included."""
    profile = small.cluster("in_process")
    l4, _ = small.complete_run(small.experiment(distillation={"weight": 0.0}), profile, tmp_path / "l4")
    lamol, _ = small.complete_run(small.experiment(method="lamol"), profile, tmp_path / "lamol")
    of_l4, of_lamol = small.weights(l4), small.weights(lamol)
    assert len(of_lamol) == 2
    assert all(of_l4[name] == of_lamol[name] for name in of_lamol)


def test_the_summary_has_what_it_promises(on_ray: small.Finished) -> None:
    summary = on_ray[1]
    assert summary["stream"] == ["mini.woz", "mini.sql"]
    assert (summary["method"], summary["peers"], summary["seed"]) == ("l4", 2, 0)
    for student in ("0", "1"):
        assert [len(row) for row in summary["score_matrix"][student]] == [2, 2]
        assert all(0 <= score <= 100 for row in summary["score_matrix"][student] for score in row)
        last = summary["score_matrix"][student][-1]
        assert list(summary["final"][student].values()) == last
        assert summary["average_accuracy"][student] == pytest.approx(sum(last) / 2)
    assert summary["replay"]["1"]["requested"] == 20
    assert summary["replay"]["1"]["valid"] + summary["replay"]["1"]["dropped"] == 20
    assert summary["exchange"]["bytes_per_step"] > 0
    assert 0 <= summary["exchange"]["wait_fraction"] < 1
    assert summary["wall_seconds"] > 0
    assert set(summary["peak_memory_bytes"]) == {"student-0", "student-1", "evaluator-0", "evaluator-1"}
    assert all(peak > 10**8 for peak in summary["peak_memory_bytes"].values()), "each holds PyTorch, so 100 MB at least"


@pytest.mark.parametrize("method", ["l2kd-seq-soft", "l4-released", "lwf", "ewc", "derpp", "l4-onpolicy", "sdft"])
def test_other_methods_learn_the_same_on_ray(
    method: str, finished: Callable[[str], small.Finished], tmp_path: Path, ray_cluster: None
) -> None:
    """Those that between them use all that methods do: teachers trained first, on their own answers; students in turn;
    a teacher that was the student; what guards know."""
    profile = small.cluster("object_store", evaluators={"count": 2})
    run, summary = small.complete_run(small.quick(method), profile, tmp_path / "run")
    expected, of_expected = finished(method)
    small.assert_equal(run, expected)
    assert summary["score_matrix"] == of_expected["score_matrix"]


OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "batches": ("l4", {"distillation": {"batches": "own"}, "peers": {"count": 3, "subset": 0.7}}),
    "answers": ("l4-onpolicy", {"distillation": {"batches": "own", "on_policy": 0.5}, "peers": {"count": 3}}),
}
"""What three students have of their own, so that each is asked to predict for two others in a step."""


@pytest.mark.parametrize("transport", ["object_store", "collective"])
@pytest.mark.parametrize("own", OWN)
def test_students_with_batches_of_their_own_learn_the_same_on_ray(
    own: str, transport: str, tmp_path: Path, ray_cluster: None
) -> None:
    method, changes = OWN[own]
    config = small.quick(method, **changes)
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    run, _ = small.complete_run(config, small.cluster(transport), tmp_path / "run")
    small.assert_equal(run, expected)
    taught = [row for row in run.step_figures() if row["kd_qa"]]
    assert taught and all(row["bytes_sent"] > 0 for row in taught)


@pytest.mark.parametrize("slots", [2, 3])
def test_models_that_are_trained_independently_do_not_depend_on_how_many_are_at_a_time(
    finished: Callable[[str], small.Finished], tmp_path: Path, slots: int
) -> None:
    profile = small.cluster("in_process")
    setup, run = small.new_run(small.quick("single-qa-lm"), profile, tmp_path / "run")
    summary = Coordinator(new_context(setup, profile, run), LocalSpawner, slots).run()
    expected, of_expected = finished("single-qa-lm")
    small.assert_equal(run, expected)
    assert summary["score_matrix"] == of_expected["score_matrix"]
    assert len(run.step_figures()) == len(expected.step_figures())
    lanes = pq.read_table(run.path / "timeline.parquet")["lane"].to_pylist()
    assert {"student 0", "student 1"} < set(lanes), "two at a time: there are no more stages"


def test_work_that_is_cut_into_other_pieces_gives_the_same(
    finished: Callable[[str], small.Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_BATCHES_PER_JOB", 1)
    run, _ = small.complete_run(small.quick("lamol"), small.cluster("in_process"), tmp_path / "run")
    small.assert_equal(run, finished("lamol")[0])
    spans = pq.read_table(run.path / "timeline.parquet").to_pylist()
    parts = [span["label"] for span in spans if "mini.woz, part" in span["label"]]
    assert len(parts) == len(set(parts)) == 2 * 5, "five batches of two for each of two checkpoints"
