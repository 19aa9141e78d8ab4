"""Peers that are scored together: one more row, however a run is interrupted, and no other number changes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_l4.cluster.evaluators import Evaluators
from ray_l4.cluster.handles import EvaluatorHandle
from ray_l4.cluster.rpc import LocalRpc
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.answering import decode_answers
from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.model_calls import ModelCalls
from ray_l4.learner.models import load_folder
from ray_l4.methods import complete, get_method
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.run_files import read_headlines
from ray_l4.run.coordinator import new_context
from ray_l4.run.scoring import Scoring
from ray_l4.run.session import start
from ray_l4.run.together import checkpoints_together
from ray_l4.run.work_queue import WorkQueue
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup, prepare
from ray_l4.store.run_directory import TOGETHER, Cell, RunDirectory
from ray_l4.store.whole_stages import damaged_scores
from ray_l4.text.test_sets import answer_batches
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures
from tests.run import run_fixtures as small
from tests.run.test_run_scoring import SIZES, Oracle, Work

IN_PROCESS = small.cluster("in_process")
SIZED: list[dict[str, Any]] = [{}, {"model": {"from_scratch": {"width": 48, "layers": 2}}}]


def of_peers(count: int, together: bool = True, **changes: Any) -> ExperimentConfig:
    """Peers that differ from the start, whose answers are sampled."""
    evaluation = {"together": together, "top_k": 3, **changes.pop("evaluation", {})}
    peers = {"count": count, "init": "own", **changes.pop("peers", {})}
    return small.quick("l4", evaluation=evaluation, peers=peers, training={"epochs": 2, "batch_size": 4}, **changes)


@pytest.fixture(scope="module", params=[2, 3])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> small.Finished:
    config = of_peers(request.param)
    return small.complete_run(config, IN_PROCESS, tmp_path_factory.mktemp("together") / "run")


def of_students(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in scores.items() if ".together." not in name}


def test_it_adds_a_row_and_changes_no_other_number(finished: small.Finished, tmp_path: Path) -> None:
    run, summary = finished
    plain, expected = small.complete_run(of_peers(summary["peers"], together=False), IN_PROCESS, tmp_path / "plain")
    assert small.weights(run) == small.weights(plain)
    assert of_students(small.scores(run)) == small.scores(plain)
    cells = {cell for cell in run.scores() if cell.student == TOGETHER}
    assert cells == {Cell(stage, 2, TOGETHER, task) for stage in range(2) for task in ("mini.rest", "mini.woz")}
    for key in ("score_matrix", "final", "average_accuracy", "forgetting"):
        assert summary[key] == expected[key]
    assert "together" not in expected
    own = summary["together"]
    headlines = read_headlines(run)
    assert own["score_matrix"] == [
        [headlines[Cell(stage, 2, TOGETHER, task)].value for task in summary["stream"]] for stage in range(2)
    ]
    assert own["final"] == dict(zip(summary["stream"], own["score_matrix"][1], strict=True))
    assert own["average_accuracy"] == pytest.approx(sum(own["final"].values()) / 2)


def test_its_answers_are_those_of_the_checkpoints_on_disk(finished: small.Finished) -> None:
    run, summary = finished
    setup = prepare(run.experiment())
    models = [load_folder(run.checkpoint(1, 2, student))[0].eval() for student in range(summary["peers"])]
    engine = BatchedEngine(others=[ModelCalls.of(model) for model in models[1:]])
    for task, tests in setup.tests.items():
        config, cell = setup.experiment.evaluation, Cell(1, 2, TOGETHER, task)
        seed = derive(setup.experiment.seed, "evaluate", "stage-1.epoch-2.together")
        found = decode_answers(models[0], setup.tokenizer, tests, config, seed, answer_batches(tests, config), engine)
        table = pq.read_table(run.path / "predictions" / f"{cell.name}.parquet").to_pylist()
        assert [row["prediction"] for row in table] == [found[index] for index in range(len(table))]
        assert run.score(cell)["student"] == "together"
        alone = pq.read_table(run.path / "predictions" / f"{replace(cell, student=0).name}.parquet").to_pylist()
        assert [row["prediction"] for row in table] != [row["prediction"] for row in alone]


def test_a_resumed_run_takes_the_scores_that_are_missing(finished: small.Finished, tmp_path: Path) -> None:
    run, summary = finished
    copy = RunDirectory(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.path / "summary.json").unlink()
    for cell in (Cell(0, 2, TOGETHER, "mini.rest"), Cell(1, 2, TOGETHER, "mini.woz"), Cell(1, 2, 1, "mini.woz")):
        (copy.path / "scores" / f"{cell.name}.json").unlink()
    (copy.path / "scores" / f"{Cell(0, 2, TOGETHER, 'mini.woz').name}.json").write_text("damaged")
    assert len(list(damaged_scores(copy))) == 1
    again = small.finish(start(prepare(copy.experiment()), IN_PROCESS, copy))
    small.assert_equal(copy, run)
    assert again["together"] == summary["together"]


def test_a_run_that_is_stopped_again_and_again(finished: small.Finished, tmp_path: Path) -> None:
    run, summary = finished
    setup, stopped = small.new_run(of_peers(summary["peers"]), IN_PROCESS, tmp_path / "run")
    again = small.run_with_stops(setup, IN_PROCESS, stopped, 12)
    small.assert_equal(stopped, run)
    assert again["together"] == summary["together"]


@pytest.mark.parametrize("evaluation", [{"when": "epoch"}, {"validation": 0.3}], ids=["every epoch", "the best epoch"])
def test_peers_of_two_sizes(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    config = of_peers(2, evaluation=evaluation, peers={"each": SIZED})
    run, summary = small.complete_run(config, IN_PROCESS, tmp_path / "run")
    places = {(cell.stage, cell.epoch, cell.task) for cell in run.scores() if cell.student == 0}
    assert {(cell.stage, cell.epoch, cell.task) for cell in run.scores() if cell.student == TOGETHER} == places
    assert all(value is not None for row in summary["together"]["score_matrix"] for value in row)
    assert ("forgetting_over_epochs" in summary["together"]) == ("when" in evaluation)


def test_a_single_student_is_no_row(tmp_path: Path) -> None:
    run, summary = small.complete_run(
        small.quick("finetune", evaluation={"together": True}), IN_PROCESS, tmp_path / "run"
    )
    assert "together" not in summary and not any(cell.student == TOGETHER for cell in run.scores())
    assert FinishedRun.open(run.path).rows == (0,)


@pytest.mark.ray
def test_it_is_the_same_on_ray_with_two_evaluators(tmp_path: Path, ray_cluster: None) -> None:
    config = of_peers(3, peers={"each": [*SIZED, {}]})
    alone, expected = small.complete_run(config, IN_PROCESS, tmp_path / "expected")
    profile = small.cluster("object_store", evaluators={"count": 2, "cpus": 0.5})
    run, summary = small.complete_run(config, profile, tmp_path / "run")
    small.assert_equal(run, alone)
    assert summary["together"] == expected["together"]


# --- which students, and when


class OracleOfPeers(Oracle):
    """Notes whose weights answered together."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.together: list[tuple[str, list[int]]] = []

    def answer_together(
        self,
        checkpoint: str,
        checkpoints: Sequence[str],
        students: Sequence[int],
        stage: int,
        task: str,
        batches: Sequence[Sequence[int]],
        *models: Any,
    ) -> dict[int, str]:
        place = checkpoint.removesuffix(".together")
        assert list(checkpoints) == [f"{place}.student-{student}" for student in students]
        assert list(models[1::2]) == [f"weights of {name}" for name in checkpoints]
        self.together.append((checkpoint, list(students)))
        return {index: "" for batch in batches for index in batch}


class PeersWork(Work):
    """A ``Scoring`` of three peers, of which some are ``present``."""

    def __init__(self, path: Path, tok: TaskTokenizer, when: str = "stage") -> None:
        super().__init__(path, tok)
        config = learner_fixtures.experiment(
            method="l4", peers={"count": 3}, evaluation={"together": True, "when": when}
        )
        self.setup = replace(self.setup, experiment=config, method=get_method("l4"), topology=complete(3))
        self.context = replace(new_context(self.setup, IN_PROCESS, self.run))
        self.present = {0, 1, 2}
        self.oracle = OracleOfPeers(self.setup)
        self.queue = WorkQueue(
            self.rpc, Evaluators([EvaluatorHandle(LocalRpc(), self.oracle)]), 10, self.context.timeline
        )
        self.scoring = Scoring(self.context, self.rpc, self.queue, lambda: self.present)


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return learner_fixtures.tokenizer()


def test_it_waits_for_the_weights_of_all_who_are_present(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = PeersWork(tmp_path, tok)
    for student in (2, 0):
        work.request(student=student)
    assert len(work.scoring) == 2 * len(SIZES)
    work.request(student=1)
    assert len(work.scoring) == 4 * len(SIZES)
    assert work.scoring.pending == {(0, 2, student) for student in range(3)}, "so no checkpoint is removed"
    assert {Cell(0, 2, TOGETHER, task) for task in SIZES} <= set(work.finish())
    assert {tuple(students) for _, students in work.oracle.together} == {(0, 1, 2)}


def test_without_a_lost_student_it_is_the_mean_of_the_others(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = PeersWork(tmp_path, tok)
    for student in range(3):
        work.request(student=student)
    work.scoring.cancel(0, 1)
    assert {cell.student for cell in work.scoring._requested} == {0, 2}, "a row that takes lost weights never comes"
    work.present = {0, 2}
    work.scoring.cancel()
    for student in (0, 2):
        work.request(student=student)
        work.scoring.cancel(0, 1)  # as after every step once the student is lost
    work.finish()
    assert {tuple(students) for _, students in work.oracle.together} == {(0, 2)}


@pytest.mark.parametrize("arrived", [(0, 2), (0, 1)])
def test_weights_of_a_lost_student_are_not_waited_for(
    tok: TaskTokenizer, tmp_path: Path, arrived: tuple[int, int]
) -> None:
    """Whether those of the lost student came before the others' or never come."""
    work = PeersWork(tmp_path, tok)
    for student in arrived:
        work.request(student=student)
    work.present = {0, 2}
    work.scoring.go_on_without(0, 1)
    for student in {0, 2} - {*arrived}:
        work.request(student=student)
    work.scoring.go_on_without(0, 1)
    work.finish()
    assert {tuple(students) for _, students in work.oracle.together} == {(0, 2)}
    assert not work.scoring._models


def test_a_stage_that_is_learned_again_is_scored_again(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = PeersWork(tmp_path, tok)
    for _ in range(2):
        for student in range(3):
            work.request(student=student)
        work.queue.wait(lambda: not len(work.queue), lambda: None)
        work.scoring.forget(0, 1)
    assert len(work.oracle.together) == 2 * len(SIZES)


def put_checkpoint(run: RunDirectory, stage: int, epoch: int, student: int) -> None:
    folder = run.checkpoint(stage, epoch, student)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


def test_a_finished_stage_has_the_row_of_those_that_finished_it(tmp_path: Path) -> None:
    _, run = small.new_run(of_peers(3, evaluation={"when": "epoch"}), IN_PROCESS, tmp_path / "run")
    for student in range(3):
        put_checkpoint(run, 0, 1, student)
    for student in (0, 1):
        put_checkpoint(run, 0, 2, student)
    assert checkpoints_together(run, (), 0, 2, None) == [0, 1]
    assert checkpoints_together(run, (), 0, 1, None) == [0, 1], "what the lost student left is of another attempt"
    assert checkpoints_together(run, (), 0, 1, {0, 1, 2}) == [0, 1, 2], "of a stage under way"
    assert checkpoints_together(run, {Cell(0, 2, 2, "a")}, 0, 2, None) == [], "its checkpoint was not kept"
    assert checkpoints_together(run, {Cell(0, 2, TOGETHER, "a")}, 0, 2, None) == [0, 1]
    assert checkpoints_together(run, (), 1, 2, None) == []
