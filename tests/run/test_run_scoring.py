"""Checkpoints are scored in parts, between which evaluators may do other work; scores do not depend on the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, save_file

from ray_l4.cluster.evaluators import Evaluators
from ray_l4.cluster.handles import EvaluatorHandle
from ray_l4.cluster.rpc import LocalRpc
from ray_l4.config.experiment import EvaluationConfig
from ray_l4.methods import get_method
from ray_l4.run.scoring import Scoring
from ray_l4.run.session import start
from ray_l4.run.work_queue import Job, WorkQueue
from ray_l4.setup.setup import Setup
from ray_l4.store.atomic import write_json
from ray_l4.store.records import WEIGHTS
from ray_l4.store.run_directory import Cell
from ray_l4.text.test_sets import Scored, build_test_set, score_answers
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small
from tests.run import run_fixtures as run_small
from tests.run.run_fixtures import bare_context

SIZES = {"a": 21, "b": 3}


class Oracle:
    """An evaluator that gives the right answers to prompts with an even index, and empty ones to the others."""

    def ready(self) -> None:
        """An object of this process is."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.asked: list[str] = []
        self.parts: dict[str, list[Sequence[Sequence[int]]]] = {}

    def answer(
        self,
        checkpoint: str,
        description: Any,
        weights: Any,
        student: int,
        stage: int,
        task: str,
        batches: Sequence[Sequence[int]],
    ) -> dict[int, str]:
        assert checkpoint.startswith(f"stage-{stage}.") and checkpoint.endswith(f".student-{student}")
        assert (description, weights) == ({"model": "small"}, f"weights of {checkpoint}")
        self.asked.append(f"answer {task}")
        self.parts.setdefault(task, []).append(batches)
        items = self.setup.tests[task].items
        return {index: items[index].references[0] if index % 2 == 0 else "" for batch in batches for index in batch}

    def score(self, task: str, predictions: Sequence[str]) -> Scored:
        self.asked.append(f"score {task}")
        return score_answers(self.setup.tests[task], predictions)

    def forget(self) -> None:
        self.asked.append("forget")


class OracleOfFiles(Oracle):
    """Gets weights as the bytes of a file with one tensor, which has the name of the checkpoint."""

    def answer(
        self,
        checkpoint: str,
        description: Any,
        weights: Any,
        student: int,
        stage: int,
        task: str,
        batches: Sequence[Sequence[int]],
    ) -> dict[int, str]:
        (name,) = load(bytes(weights))
        return super().answer(checkpoint, description, f"weights of {name}", student, stage, task, batches)


class Work:
    """A ``Scoring`` with all that it needs."""

    def __init__(
        self, path: Path, tok: TaskTokenizer, workers: int = 1, when: str = "stage", from_disk: bool = False
    ) -> None:
        config = small.experiment(evaluation={"chunk": 2, "when": when})
        row = get_method("lamol")
        tests = {
            task: build_test_set(small.examples(task, size), "em", tok, 64, EvaluationConfig(chunk=2))
            for task, size in SIZES.items()
        }
        self.setup = Setup(config, row, row.graph(1), tok, 64, {}, tests)
        self.context = bare_context(self.setup, path)
        self.run = self.context.directory
        self.rpc = LocalRpc()
        self.oracles = [(OracleOfFiles if from_disk else Oracle)(self.setup) for _ in range(workers)]
        evaluators = [EvaluatorHandle(self.rpc, oracle) for oracle in self.oracles]
        self.queue = WorkQueue(self.rpc, Evaluators(evaluators), 10, self.context.timeline)
        self.scoring = Scoring(self.context, self.rpc, self.queue)

    def request(self, stage: int = 0, student: int = 0) -> None:
        cell = Cell(stage, 2, student, "")
        weights = self.rpc.put(f"weights of {cell.checkpoint}")
        self.scoring.request(stage, 2, student, weights, {"model": "small"})

    def finish(self) -> Mapping[Cell, Mapping[str, Any]]:
        self.queue.wait(lambda: not len(self.queue), lambda: None)
        self.context.curves.close()
        return self.run.scores()


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer()


def test_a_test_set_is_divided_into_parts_of_whole_batches(tok: TaskTokenizer, tmp_path: Path) -> None:
    """Eleven batches of two: replay, for which students stand still, waits for four of them at most."""
    work = Work(tmp_path, tok)
    work.request()
    assert len(work.queue) == 3 + 1
    work.finish()
    (oracle,) = work.oracles
    assert [len(part) for part in oracle.parts["a"]] == [4, 4, 3]
    batches = [batch for part in oracle.parts["a"] for batch in part]
    assert [len(batch) for batch in batches] == [2] * 10 + [1]
    assert sorted(index for batch in batches for index in batch) == list(range(21))
    lengths = [len(ids) for ids in work.setup.tests["a"].prompts["ids"].to_pylist()]
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(in_order), "prompts of similar length are decoded together"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_cell_is_scored_once_when_all_its_parts_are_answered(
    tok: TaskTokenizer, tmp_path: Path, workers: int
) -> None:
    work = Work(tmp_path, tok, workers)
    work.request()
    scores = work.finish()
    assert sorted(name for oracle in work.oracles for name in oracle.asked if "score" in name) == ["score a", "score b"]
    right = {"a": 11 / 21, "b": 2 / 3}
    tests = work.setup.tests
    for task, share in right.items():
        record = scores[Cell(0, 2, 0, task)]
        assert record["values"]["em"] == pytest.approx(100 * share)
        assert record["examples"] == SIZES[task]
        limits = (tests[task].max_new_tokens, tests[task].reserved)
        assert (record["max_new_tokens"], record["reserved"]) == limits


def test_every_answer_is_recorded_beside_its_question(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = Work(tmp_path, tok, workers=2)
    work.request()
    work.finish()
    record = pq.read_table(tmp_path / "predictions" / "stage-0.epoch-2.student-0.a.parquet").to_pylist()
    items = work.setup.tests["a"].items
    assert [row["sample_id"] for row in record] == [item.sample_id for item in items]
    assert [row["references"] for row in record] == [list(item.references) for item in items]
    asked = small.examples("a", 21)
    assert [row["context"] for row in record] == asked["context"].to_pylist()
    assert [row["question"] for row in record] == asked["question"].to_pylist()
    assert [row["prediction"] == row["references"][0] for row in record] == [i % 2 == 0 for i in range(21)]
    assert [row["score"] for row in record] == [100.0 if i % 2 == 0 else 0.0 for i in range(21)]


def test_urgent_work_comes_between_two_parts_and_scores_before_further_parts(
    tok: TaskTokenizer, tmp_path: Path
) -> None:
    work = Work(tmp_path, tok)
    work.request()
    work.queue.poll()
    work.queue.add([Job("urgent", lambda evaluator: evaluator.forget(), lambda value: None)], urgent=True)
    work.request(stage=1)
    work.finish()
    (oracle,) = work.oracles
    assert oracle.asked == [
        *["answer a", "forget", "answer a", "answer a", "score a", "answer b", "score b"],
        *["answer a", "answer a", "answer a", "score a", "answer b", "score b"],
    ]


def test_cells_are_open_until_they_are_scored(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = Work(tmp_path, tok)
    work.request()
    assert len(work.scoring) == 2
    work.queue.wait(lambda: len(work.scoring) == 1, lambda: None)
    assert set(work.run.scores()) == {Cell(0, 2, 0, "a")}
    work.finish()
    assert len(work.scoring) == 0
    assert work.context.progress.snapshot().jobs_done == 2, "cells are counted, not parts"
    assert sum("a em 52.4" in event for event in work.context.progress.snapshot().events) == 1


# --- after a resume or a loss


@pytest.mark.parametrize(
    ("when", "chosen", "expected"),
    [("epoch", None, {1, 2}), ("stage", None, {2}), ("stage", 1, {1}), ("epoch", 1, {1, 2})],
)
def test_epochs_that_are_scored(
    tok: TaskTokenizer, tmp_path: Path, when: str, chosen: int | None, expected: set[int]
) -> None:
    """Two epochs are trained; without validation the last one is the result, with it the one that was chosen."""
    work = Work(tmp_path, tok, when=when)
    for epoch in (1, 2):
        folder = work.run.checkpoint(0, epoch, 0)
        folder.mkdir(parents=True)
        save_file({"a": np.zeros(1, np.float32)}, folder / WEIGHTS)
    if chosen is not None:
        write_json(work.run.validation(0), {"epoch": chosen, "examples": 2, "means": [1.0, 1.0]})
    work.scoring.request_missing(1, {0: {"model": "small"}})
    assert work.scoring.pending == {(0, epoch, 0) for epoch in expected}


def test_missing_scores_are_requested_from_the_checkpoints_on_disk(tok: TaskTokenizer, tmp_path: Path) -> None:
    """A student that was lost has no later checkpoints; what is scored already is not scored again."""
    earlier = Work(tmp_path, tok)
    earlier.request(0)
    earlier.queue.wait(lambda: len(earlier.scoring) == 1, lambda: None)
    (scored,) = earlier.run.scores()
    for stage, student in ((0, 0), (0, 1), (1, 0)):
        cell = Cell(stage, 2, student, "")
        folder = earlier.run.checkpoint(stage, 2, student)
        folder.mkdir(parents=True)
        save_file({cell.checkpoint: np.zeros(1, np.float32)}, folder / WEIGHTS)
    work = Work(tmp_path, tok, from_disk=True)
    work.scoring.request_missing(2, {student: {"model": "small"} for student in range(2)})
    found = work.finish()
    expected = {(0, 0), (0, 1), (1, 0)}
    assert set(found) == {Cell(stage, 2, student, task) for stage, student in expected for task in SIZES}
    asked = work.oracles[0].asked
    assert asked.count(f"score {scored.task}") == 2, "not again for the student that has this score"
    (other,) = set(SIZES) - {scored.task}
    assert asked.count(f"score {other}") == 3


def test_scores_of_a_lost_student_are_cancelled_and_those_of_the_others_are_not(
    tok: TaskTokenizer, tmp_path: Path
) -> None:
    work = Work(tmp_path, tok)
    work.request(0, student=0)
    work.request(0, student=1)
    work.queue.poll()  # a part of student 0's is under way
    work.scoring.cancel(0, 0)
    assert len(work.scoring) == 2
    assert set(work.finish()) == {Cell(0, 2, 1, task) for task in SIZES}
    assert len(work.scoring) == 0


def test_a_stage_that_is_learned_again_is_scored_again(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = Work(tmp_path, tok)
    for stage in (0, 1):
        work.request(stage)
    work.queue.wait(lambda: len(work.scoring) == 1, lambda: None)  # all of stage 0, and a task of stage 1
    work.scoring.cancel()
    work.scoring.forget(1, 1)
    assert len(work.scoring) == 0
    work.request(1)
    work.finish()
    (oracle,) = work.oracles
    assert [oracle.asked.count(f"score {task}") for task in SIZES] == [3, 2]


def test_what_is_scored_or_asked_for_is_not_asked_for_again(tok: TaskTokenizer, tmp_path: Path) -> None:
    """A run that goes on from a state reaches the end of an epoch a second time."""
    work = Work(tmp_path, tok)
    work.request(1)
    work.request(1)
    assert len(work.scoring) == len(SIZES)
    work.finish()
    work.scoring.forget(1, 3)  # the request is for epoch 2
    work.request(1)
    assert len(work.scoring) == 0
    (oracle,) = work.oracles
    assert [oracle.asked.count(f"score {task}") for task in SIZES] == [1, 1]


@pytest.mark.parametrize("when", ["stage", "epoch"])
def test_training_waits_for_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Evaluators that answer only once all stages have been learned delay the end of a run, and nothing else."""
    config = run_small.quick("finetune", evaluation={"when": when, "max_new_tokens": 8})
    profile = run_small.cluster("in_process")
    expected, _ = run_small.complete_run(config, profile, tmp_path / "expected")
    setup, late = run_small.new_run(config, profile, tmp_path / "late")
    poll, polls_in_vain = WorkQueue.poll, []

    def after_training(queue: WorkQueue) -> None:
        if late.state().stages_done == len(setup.stages):
            poll(queue)
        else:
            polls_in_vain.append(len(queue))

    monkeypatch.setattr(WorkQueue, "poll", after_training)
    run_small.finish(start(setup, profile, late))
    assert max(polls_in_vain) > 0, "scores of the first stage were open while the second one was learned"
    run_small.assert_equal(late, expected)
