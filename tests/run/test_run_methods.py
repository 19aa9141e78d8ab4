"""Every row of the method table, from data to summary, on a stream of two tiny tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_l4.methods import ALL_TASKS, METHODS, get_method, graph_of
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.setup.setup import prepare
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small

TASKS = ["mini.rest", "mini.woz"]

every_method = pytest.mark.parametrize(
    "method", [name for name in small.WITHOUT_OTHERS if not METHODS[name].needs_adapters]
)
"""Those that need adapters have runs of their own (test_run_subspaces.py)."""
Finished = Callable[[str], small.Finished]


@every_method
def test_the_score_matrix_has_a_row_for_each_stage(method: str, finished: Finished) -> None:
    run, summary = finished(method)
    stages = {"stream": TASKS, "separate": TASKS, "union": [ALL_TASKS]}[get_method(method).stages]
    assert (summary["method"], summary["variant"], summary["stages"]) == (method, method, stages)
    for student in map(str, range(summary["peers"])):
        matrix = summary["score_matrix"][student]
        assert [len(row) for row in matrix] == [2] * len(stages)
        for stage, row in enumerate(matrix):
            for task, score in enumerate(row):
                scored = get_method(method).stages != "separate" or task == stage
                assert (score is not None) == scored
        final = list(summary["final"][student].values())
        expected = [matrix[0][0], matrix[1][1]] if get_method(method).stages == "separate" else matrix[-1]
        assert final == expected
        assert summary["average_accuracy"][student] == pytest.approx(sum(final) / 2)
        in_order = get_method(method).stages == "stream"
        assert (summary["forgetting"][student] is None) != in_order
    assert run_report(FinishedRun.open(run.path)).count("| mini.woz") >= 1, "and there is a report of it"


@every_method
def test_checkpoints_are_those_of_the_students(method: str, finished: Finished) -> None:
    run, summary = finished(method)
    students = graph_of(run.experiment()).students
    expected = {run.checkpoint(stage, 3, student) for stage in range(len(summary["stages"])) for student in students}
    assert {path.parent for path in (run.path / "checkpoints").rglob("model.safetensors")} == expected
    different = len(expected) if get_method(method).learns else 1
    assert len(set(small.weights(run).values())) == different, "no two are equal: each learned something"


@every_method
def test_a_run_has_the_folders_of_its_method_and_no_others(method: str, finished: Finished) -> None:
    run, _ = finished(method)
    row = get_method(method)
    expected = {
        "teachers": row.teacher == "task",
        "distil": row.answers == "teacher",
        "guards": row.guard_learns,
        "replay": row.replay != "none",
    }
    assert {name: (run.path / name).is_dir() for name in expected} == expected


@every_method
def test_figures_of_every_step_are_there(method: str, finished: Finished) -> None:
    run, summary = finished(method)
    row, rows = get_method(method), run.step_figures()
    graph = graph_of(run.experiment())
    assert {(r["stage"], r["epoch"], r["student"]) for r in rows} == {
        (stage, epoch, student)
        for stage in range(len(summary["stages"]))
        for epoch in (1, 2, 3)
        for student in graph.students
        if row.learns
    }
    assert all(math.isfinite(r["loss"]) and r["tokens"] > 0 for r in rows)
    assert all((r["nll_lm"] is not None) == ("lm" in row.heads) for r in rows)
    last = [r for r in rows if r["stage"] == len(summary["stages"]) - 1 and r["step"] > 2]
    taught = bool(graph.edges)
    assert any(r["kd_qa"] != 0 for r in last) == taught
    assert all(r["kd_qa"] > -1e-6 for r in rows), "a divergence, up to rounding"
    if row.guard_learns:
        assert all(r["penalty"] == 0 for r in rows if r["stage"] == 0), "nothing was learned yet"
        assert all(r["penalty"] > 0 for r in last)


@pytest.mark.parametrize("method", ["ewc", "mas", "derpp"])
def test_what_a_guard_knows_is_kept_after_every_stage(method: str, finished: Finished) -> None:
    run, _ = finished(method)
    found = {path.name: path.read_bytes() for path in (run.path / "guards").glob("*.safetensors")}
    assert sorted(found) == ["stage-0.student-0.safetensors", "stage-1.student-0.safetensors"]
    assert len(set(found.values())) == 2


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.answers == "teacher"])
def test_a_teacher_s_answers_are_on_record_for_every_training_example(method: str, finished: Finished) -> None:
    run, _ = finished(method)
    for task, count in zip(TASKS, (40, 32), strict=True):
        answers = pq.read_table(run.answers(task)).to_pydict()
        assert len(set(answers["sample_id"])) == len(answers["answer"]) == count
        assert len(set(answers["answer"])) > 1, "they depend on what was asked"


@pytest.mark.parametrize("method", [name for name in small.WITHOUT_OTHERS if METHODS[name].replays])
def test_replay_is_on_record(method: str, finished: Finished) -> None:
    run, summary = finished(method)
    rows, counts = small.replayed(run), summary["replay"]["1"]
    assert counts["requested"] == len(rows) == 32, "as many as examples of the new task, all of the one earlier task"
    assert counts["valid"] == sum(row["valid"] for row in rows) > 0
    stored = get_method(method).replay == "stored"
    assert {row["student"] for row in rows} == ({None} if stored else {0})
    assert all(bool(row["reason"]) != row["valid"] for row in rows)


def test_models_without_order_start_anew_for_every_task(finished: Finished) -> None:
    """The second model of a run is what it would be on its own."""
    run, _ = finished("single-qa")
    alone = [row for row in run.step_figures() if row["step"] == 0]
    assert [row["stage"] for row in alone] == [0, 1]
    stream, _ = finished("finetune")
    first = [row for row in stream.step_figures() if row["step"] == 0]
    assert alone[0]["loss"] == first[0]["loss"]
    assert alone[1]["loss"] > first[1]["loss"], "a model that has learned a task is not new to the next"


def test_without_replay_it_does_not_matter_what_kind(tmp_path: Path) -> None:
    """er and lamol differ in the origin of the replay alone."""
    found = {}
    for method in ("er", "lamol"):
        config = small.quick(method, replay={"ratio": 0.0})
        found[method], _ = small.complete_run(config, small.cluster("in_process"), tmp_path / method)
    small.assert_equal(found["er"], found["lamol"])


def test_the_label_of_a_run_stands_in_its_summary(tmp_path: Path) -> None:
    config = small.quick("finetune", variant="finetune, short", training={"epochs": 1})
    _, summary = small.complete_run(config, small.cluster("in_process"), tmp_path / "run")
    assert (summary["method"], summary["variant"]) == ("finetune", "finetune, short")


# --- who generates replay


@pytest.fixture(scope="module", params=["own", "pool"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of l4 in which both students generate."""
    config = small.quick("l4", replay={"generator": request.param}, training={"epochs": 4})
    run, _ = small.complete_run(config, small.cluster("in_process"), tmp_path_factory.mktemp("generator") / "run")
    return run


@pytest.mark.slow
def test_both_students_generate(shared: RunDirectory) -> None:
    own = shared.experiment().replay.generator == "own"
    rows = small.replayed(shared)
    assert [row["student"] for row in rows] == ([0] * 32 + [1] * 32 if own else [0, 1] * 16)
    texts = {student: {row["text"] for row in rows if row["student"] == student} for student in (0, 1)}
    assert texts[0] != texts[1]


@pytest.mark.slow
def test_students_learn_from_batches_of_the_same_size_whoever_generates(shared: RunDirectory) -> None:
    steps: dict[int, dict[int, float]] = {0: {}, 1: {}}
    for row in shared.step_figures():
        if row["stage"] == 1:
            steps[row["student"]][row["step"]] = row["samples"]
            assert row["kd_qa"] >= 0
    assert steps[0] == steps[1]
    valid = [row["student"] for row in small.replayed(shared) if row["valid"]]
    own = shared.experiment().replay.generator == "own"
    replayed = min(valid.count(0), valid.count(1)) if own else len(valid)
    assert sum(steps[0].values()) == 4 * (32 + replayed)


def test_lamol_with_one_task_token_for_all(tmp_path: Path) -> None:
    """LAMOL-GEN (REFERENCE.md#added-tokens): every text starts with the same token, those that are replayed too."""
    model = small.quick("lamol").model.model_dump() | {"task_tokens": "shared"}
    run, _ = small.complete_run(small.quick("lamol", model=model), small.cluster("in_process"), tmp_path / "run")
    rows = pq.read_table(run.path / "replay" / "stage-1.parquet").to_pylist()
    assert rows and {row["task"] for row in rows} == {TASKS[0]}
    gens = {table["gen"][0].as_py() for table in prepare(run.experiment()).training.values()}
    assert len(gens) == 1, "the second task has no token of its own either"
    assert {row["ids"][0] for row in rows} == gens
