"""The summary follows from the files of a run directory alone, which are written by hand here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.metrics import continual
from ray_l4.report.run_files import count_parameters, read_headlines
from ray_l4.report.summary import score_matrix, summarise
from ray_l4.store.record_types import Summary, check_record
from ray_l4.store.records import write_replay, write_score, write_steps
from ray_l4.store.run_directory import TOGETHER, Cell, RunDirectory, RunState
from ray_l4.store.weight_files import damage

TASKS = ["woz.en", "wikisql", "e2enlg"]
EPOCHS = 2


def new_run(path: Path, method: str = "l4", **changes: Any) -> RunDirectory:
    experiment = ExperimentConfig.model_validate(
        {
            "name": "by hand",
            "method": method,
            "seed": 5,
            "stream": TASKS,
            "model": {"from_scratch": {}},
            "training": {"epochs": EPOCHS},
        }
        | changes
    )
    return RunDirectory.create(path, experiment, ClusterConfig(), {"command": "test"})


def put_score(run: RunDirectory, stage: int, student: int, task: str, value: float, epoch: int = EPOCHS) -> None:
    record = {"headline": "em", "values": {"nem": 1.0, "em": value}}
    write_score(run, Cell(stage, epoch, student, task), record, {"sample_id": []})


def put_matrix(run: RunDirectory, student: int, matrix: list[list[float]]) -> None:
    for stage, row in enumerate(matrix):
        for task, value in zip(TASKS, row, strict=True):
            put_score(run, stage, student, task, value)


FIRST = [[80.0, 1.0, 2.0], [60.0, 70.0, 3.0], [50.0, 75.0, 40.0]]
SECOND = [[10.0, 0.0, 0.0], [20.0, 30.0, 0.0], [30.0, 20.0, 90.0]]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = new_run(tmp_path / "run")
    put_matrix(run, 0, FIRST)
    put_matrix(run, 1, SECOND)
    return run


def test_what_was_run_stands_first(run: RunDirectory) -> None:
    summary = summarise(run)
    found = {name: summary[name] for name in ("name", "method", "stream", "peers", "seed")}
    assert found == {"name": "by hand", "method": "l4", "stream": TASKS, "peers": 2, "seed": 5}


@pytest.mark.parametrize(
    ("method", "peers", "expected"),
    [
        ("l4", {}, "complete"),
        ("lamol", {"count": 3}, "isolated"),
        ("l2kd-word", {}, "taught"),
        ("l4", {"count": 4, "topology": "star"}, "star"),
        ("l4", {"count": 3, "topology": [[2, 0], [0, 1]]}, [[0, 1], [2, 0]]),
        ("l4", {"topology": []}, []),
    ],
)
def test_who_learns_from_whom_is_on_record(
    tmp_path: Path, method: str, peers: dict[str, Any], expected: object
) -> None:
    assert summarise(new_run(tmp_path / "run", method, peers=peers))["topology"] == expected


def test_rows_are_stages_and_columns_tasks(run: RunDirectory) -> None:
    summary = summarise(run)
    assert summary["stages"] == TASKS
    assert summary["score_matrix"] == {"0": FIRST, "1": SECOND}
    assert summary["final"] == {
        "0": {"woz.en": 50.0, "wikisql": 75.0, "e2enlg": 40.0},
        "1": {"woz.en": 30.0, "wikisql": 20.0, "e2enlg": 90.0},
    }


def test_figures_by_hand(run: RunDirectory) -> None:
    """REFERENCE.md#continual-metrics: the mean of the last row; for all tasks but the last, the means of best minus
    last and of last minus learned."""
    summary = summarise(run)
    assert summary["average_accuracy"] == {"0": pytest.approx(55.0), "1": pytest.approx(140 / 3)}
    assert summary["forgetting"] == {"0": pytest.approx((30 + 0) / 2), "1": pytest.approx((0 + 10) / 2)}
    assert summary["backward_transfer"] == {"0": pytest.approx((-30 + 5) / 2), "1": pytest.approx((20 - 10) / 2)}
    assert summary["average_incremental_accuracy"] == {
        "0": pytest.approx((80 + 65 + 55) / 3),
        "1": pytest.approx((10 + 25 + 140 / 3) / 3),
    }


matrices = st.lists(st.lists(st.floats(0, 100), min_size=3, max_size=3), min_size=3, max_size=3)


@given(matrix=matrices)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_figures_are_those_of_the_metrics_room(
    tmp_path_factory: pytest.TempPathFactory, matrix: list[list[float]]
) -> None:
    run = new_run(tmp_path_factory.mktemp("run") / "run", method="lamol")
    put_matrix(run, 0, matrix)
    summary = summarise(run)
    assert summary["score_matrix"]["0"] == matrix
    names = ("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer")
    for name in names:
        assert summary[name] == {"0": getattr(continual, name)(matrix)}


def test_a_run_is_labelled_by_its_method_unless_it_says_otherwise(run: RunDirectory, tmp_path: Path) -> None:
    assert summarise(run)["variant"] == "l4"
    assert summarise(new_run(tmp_path / "other", variant="l4, lambda 0"))["variant"] == "l4, lambda 0"


def test_models_of_one_task_each_are_asked_about_it_alone(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", method="single-qa-lm")
    for stage, (task, value) in enumerate(zip(TASKS, (80.0, 70.0, 40.0), strict=True)):
        put_score(run, stage, 0, task, value)
    summary = summarise(run)
    assert summary["stages"] == TASKS
    assert summary["score_matrix"] == {"0": [[80.0, None, None], [None, 70.0, None], [None, None, 40.0]]}
    assert summary["final"]["0"] == {"woz.en": 80.0, "wikisql": 70.0, "e2enlg": 40.0}
    assert summary["average_accuracy"]["0"] == pytest.approx(190 / 3)
    for name in ("average_incremental_accuracy", "forgetting", "backward_transfer"):
        assert summary[name] == {"0": None}, "there is no order"


@pytest.mark.parametrize("method", ["multi-qa", "multi-seq-kd"])
def test_a_run_on_all_tasks_at_once_has_one_row(tmp_path: Path, method: str) -> None:
    run = new_run(tmp_path / "run", method=method, evaluation={"when": "epoch"})
    for epoch, row in ((1, (10.0, 20.0, 30.0)), (2, (80.0, 70.0, 45.0))):
        for task, value in zip(TASKS, row, strict=True):
            put_score(run, 0, 0, task, value, epoch)
    summary = summarise(run)
    assert summary["stages"] == ["all"]
    assert summary["score_matrix"] == {"0": [[80.0, 70.0, 45.0]]}
    assert summary["final"]["0"] == {"woz.en": 80.0, "wikisql": 70.0, "e2enlg": 45.0}
    assert summary["average_accuracy"]["0"] == pytest.approx(65.0)
    for name in ("average_incremental_accuracy", "forgetting", "backward_transfer"):
        assert summary[name] == {"0": None}
    assert "forgetting_over_epochs" not in summary


def test_the_number_of_peers_is_the_experiment_s_before_the_method_s(tmp_path: Path) -> None:
    assert summarise(new_run(tmp_path / "one", method="finetune"))["peers"] == 1
    four = summarise(new_run(tmp_path / "four", peers={"count": 4}))
    assert (four["peers"], list(four["score_matrix"])) == (4, ["0", "1", "2", "3"])


def test_only_the_last_epoch_of_a_stage_counts(run: RunDirectory) -> None:
    for epoch in (1, 3):
        put_score(run, 2, 0, "woz.en", 99.0, epoch=epoch)
    assert summarise(run)["final"]["0"]["woz.en"] == 50.0


def test_forgetting_over_epochs_counts_the_best_score_of_any_epoch(tmp_path: Path) -> None:
    """As in Table 3 of the L4 paper; a stage's first epoch may have been better than its last."""
    run = new_run(tmp_path / "run", method="lamol", evaluation={"when": "epoch"})
    put_matrix(run, 0, FIRST)
    for stage, row in enumerate(FIRST):
        for task, value in zip(TASKS, row, strict=True):
            put_score(run, stage, 0, task, value - 0.5, epoch=1)
    put_score(run, 0, 0, "woz.en", 90.0, epoch=1)
    summary = summarise(run)
    assert summary["forgetting"]["0"] == pytest.approx((30 + 0) / 2)
    assert summary["forgetting_over_epochs"]["0"] == pytest.approx((40 + 0) / 2)
    assert summary["score_matrix"]["0"] == FIRST
    assert "forgetting_over_epochs" not in summarise(new_run(tmp_path / "stages"))


def test_cells_that_were_not_scored_are_missing_and_so_is_what_needs_them(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", method="lamol")
    put_score(run, 0, 0, "woz.en", 80.0)
    put_score(run, 2, 0, "woz.en", 50.0)
    summary = summarise(run)
    assert summary["score_matrix"]["0"] == [[80.0, None, None], [None, None, None], [50.0, None, None]]
    assert summary["final"]["0"] == {"woz.en": 50.0, "wikisql": None, "e2enlg": None}
    for name in ("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer"):
        assert summary[name] == {"0": None}


def test_scores_of_other_students_and_strange_tasks_do_not_get_in(run: RunDirectory) -> None:
    put_score(run, 0, 7, "woz.en", 99.0)
    put_score(run, 0, 0, "removed", 99.0)
    assert score_matrix(read_headlines(run), 0, TASKS, [EPOCHS] * len(TASKS)) == FIRST


def test_a_single_task_has_no_forgetting(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", method="lamol", stream=["woz.en"])
    put_score(run, 0, 0, "woz.en", 80.0)
    summary = summarise(run)
    assert (summary["average_accuracy"]["0"], summary["forgetting"]["0"]) == (80.0, None)


def step(student: int, number: int, **figures: float) -> dict[str, float]:
    return {"stage": 0, "epoch": 1, "step": number, "student": student, "loss": 1.0, **figures}


def seconds(forward: float, wait: float, backward: float, idle: float) -> dict[str, float]:
    return {"forward_seconds": forward, "wait_seconds": wait, "backward_seconds": backward, "idle_seconds": idle}


def test_bytes_and_waiting_are_means_over_steps_and_students(run: RunDirectory) -> None:
    write_steps(
        run,
        0,
        1,
        [
            step(0, 0, bytes_sent=1000, bytes_received=0, **seconds(1.0, 0.0, 2.0, 0.0)),
            step(1, 0, bytes_sent=3000, bytes_received=9000, **seconds(1.0, 1.5, 2.0, 0.5)),
        ],
    )
    write_steps(run, 1, 1, [step(0, 1, bytes_sent=2000, bytes_received=3000, **seconds(0.5, 0.5, 1.0, 0.0))])
    assert summarise(run)["exchange"] == {
        "bytes_per_step": pytest.approx(2000.0),
        "bytes_received_per_step": pytest.approx(4000.0),
        "wait_fraction": pytest.approx(2.0 / 10.0),
    }


def test_without_steps_or_time_nothing_is_divided_by_zero(run: RunDirectory) -> None:
    nothing = {"bytes_per_step": 0.0, "bytes_received_per_step": 0.0, "wait_fraction": 0.0}
    assert summarise(run)["exchange"] == nothing
    write_steps(run, 0, 1, [step(0, 0, bytes_sent=10, **seconds(0, 0, 0, 0))])
    assert summarise(run)["exchange"] == nothing | {"bytes_per_step": 10.0}


def test_steps_of_an_older_run_received_nothing_that_is_known(run: RunDirectory) -> None:
    write_steps(run, 0, 1, [step(0, 0, bytes_sent=10, bytes_received=7, **seconds(1, 0, 0, 0))])
    path = run.path / "steps" / "stage-0.epoch-1.parquet"
    pq.write_table(pq.read_table(path).drop_columns("bytes_received").replace_schema_metadata(None), path)
    assert summarise(run)["exchange"] == {
        "bytes_per_step": 10.0,
        "bytes_received_per_step": 0.0,
        "wait_fraction": 0.0,
    }


def test_replay_is_counted_by_stage(run: RunDirectory) -> None:
    for stage, validity in ((1, [True, False, True]), (2, [False])):
        rows = [
            {"index": i, "student": 0, "task": "woz.en", "valid": valid, "reason": "", "text": "", "ids": []}
            for i, valid in enumerate(validity)
        ]
        write_replay(run, stage, rows)
    assert summarise(run)["replay"] == {
        "1": {"requested": 3, "valid": 2, "dropped": 1},
        "2": {"requested": 1, "valid": 0, "dropped": 1},
    }


def test_a_method_without_replay_has_none(run: RunDirectory) -> None:
    assert summarise(run)["replay"] == {}


def test_time_and_memory_come_from_the_state(run: RunDirectory) -> None:
    run.save_state(RunState(stages_done=3, wall_seconds=61.5, peak_memory_bytes={"student-0": 2**30}))
    summary = summarise(run)
    assert summary["wall_seconds"] == 61.5
    assert summary["peak_memory_bytes"] == {"student-0": 2**30}


def test_a_damaged_score_is_not_taken_for_a_missing_one(run: RunDirectory) -> None:
    (run.path / "scores" / "stage-0.epoch-2.student-0.woz.en.json").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be read as JSON"):
        summarise(run)


def weights(folder: Path, name: str, **shapes: tuple[int, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: np.zeros(shape, np.float16) for key, shape in shapes.items()}, folder / name, {"format": "pt"})


def test_parameters_are_those_of_the_last_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert count_parameters(run, 0) is None
    weights(run.checkpoint(1, 9, 0), "model.safetensors", a=(2, 3), b=(4,))
    weights(run.checkpoint(1, 10, 0), "model-00001-of-00002.safetensors", a=(2, 3), b=(4,))
    weights(run.checkpoint(1, 10, 0), "model-00002-of-00002.safetensors", c=(100,), scalar=())
    weights(run.checkpoint(2, 1, 1), "adapter_model.safetensors", a=(8, 2))
    run.checkpoint(2, 1, 0).mkdir()  # its weights were deleted
    assert count_parameters(run, 0) == {"count": 111, "adapters": False}
    assert count_parameters(run, 1) == {"count": 16, "adapters": True}


@pytest.mark.parametrize("content", [b"", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 16, b"\x05\0\0\0\0\0\0\0hello"])
def test_a_damaged_weight_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = RunDirectory(tmp_path).checkpoint(0, 1, 0)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=rf"{folder}/model.safetensors is damaged: ") as caught:
        count_parameters(RunDirectory(tmp_path), 0)
    assert str(damage(folder / "model.safetensors")) in str(caught.value), "in the words of a resume"


def test_all_students_together_are_beside_the_students(tmp_path: Path) -> None:
    plain, run = (new_run(tmp_path / name, **settings) for name, settings in WITH_AND_WITHOUT.items())
    for each in (plain, run):
        put_matrix(each, 0, FIRST)
        put_matrix(each, 1, SECOND)
    put_matrix(run, TOGETHER, THIRD)
    found, expected = summarise(run), summarise(plain)
    together = found.pop("together")
    assert found == expected, "nothing else changes"
    assert together["score_matrix"] == THIRD
    assert together["final"] == dict(zip(TASKS, THIRD[-1], strict=True))
    assert together["average_accuracy"] == pytest.approx(sum(THIRD[-1]) / 3)
    assert together["forgetting"] == pytest.approx(continual.forgetting(THIRD, (), [0, 1, 2]))
    assert summarise(plain).keys() == expected.keys()


WITH_AND_WITHOUT: dict[str, dict[str, Any]] = {"plain": {}, "together": {"evaluation": {"together": True}}}
THIRD = [[90.0, 1.0, 2.0], [70.0, 80.0, 3.0], [55.0, 77.0, 45.0]]


def test_a_damaged_row_of_all_students_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", evaluation={"together": True})
    put_matrix(run, 0, FIRST)
    put_matrix(run, TOGETHER, THIRD)
    summary = summarise(run)
    check_record(run.path / "summary.json", summary, Summary)
    summary["together"]["score_matrix"].pop()
    with pytest.raises(RunDirectoryError, match="together: does not hold the scores of 3 stages and 3 tasks"):
        check_record(run.path / "summary.json", summary, Summary)
