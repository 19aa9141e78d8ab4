"""Checkpoints are scored in pieces, between which other work may come; what comes out does not depend on the pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_l4.cluster.rpc import InProcess
from ray_l4.config.experiment import EvaluationConfig
from ray_l4.learner.answering import Scored, build_test_set, score_answers
from ray_l4.methods import get_method
from ray_l4.monitor.progress import Progress
from ray_l4.monitor.tensorboard import TensorBoardLog
from ray_l4.monitor.timeline import Timeline
from ray_l4.run.scoring import Scoring
from ray_l4.run.work_queue import Job, WorkPool
from ray_l4.setup.setup import Setup
from ray_l4.store.run_directory import Cell, RunDirectory
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

SIZES = {"a": 21, "b": 3}


class Oracle:
    """An evaluator that knows the right answers, and gives those of prompts with an even index."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.asked: list[str] = []
        self.pieces: dict[str, list[Sequence[Sequence[int]]]] = {}

    def answer(
        self, checkpoint: str, student: int, description: Any, weights: Any, task: str, batches: Sequence[Sequence[int]]
    ) -> dict[int, str]:
        assert checkpoint.endswith(f".student-{student}")
        assert (description, weights) == ({"model": "small"}, f"weights of {checkpoint}")
        self.asked.append(f"answer {task}")
        self.pieces.setdefault(task, []).append(batches)
        items = self.setup.tests[task].items
        return {index: items[index].references[0] if index % 2 == 0 else "" for batch in batches for index in batch}

    def score(self, task: str, predictions: Sequence[str]) -> Scored:
        self.asked.append(f"score {task}")
        return score_answers(self.setup.tests[task], predictions)

    def replay(self) -> None:
        self.asked.append("replay")


class Work:
    """A scoring with all that it needs."""

    def __init__(self, path: Path, tok: TaskTokenizer, workers: int = 1) -> None:
        config = small.experiment(evaluation={"chunk": 2})
        row = get_method("lamol")
        tests = {
            task: build_test_set(small.examples(task, size), "em", tok, 64, EvaluationConfig(chunk=2))
            for task, size in SIZES.items()
        }
        self.setup = Setup(config, row, row.graph(1), tok, 64, {}, tests)
        self.run = RunDirectory(path)
        self.oracles = [Oracle(self.setup) for _ in range(workers)]
        self.pool = WorkPool(InProcess(), self.oracles, 10, Timeline(self.run))
        self.progress = Progress()
        self.board = TensorBoardLog(path / "tensorboard", 0)
        self.scoring = Scoring(self.setup, self.run, InProcess(), self.pool, self.progress, self.board)

    def request(self, stage: int = 0) -> None:
        cell = Cell(stage, 2, 0, "")
        weights = InProcess().put(f"weights of {cell.checkpoint}")
        self.scoring.request(stage, 2, 0, weights, {"model": "small"})

    def finish(self) -> Mapping[Cell, Mapping[str, Any]]:
        self.pool.wait(lambda: not len(self.pool), lambda: None)
        self.board.close()
        return self.run.scores()


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer()


def test_a_test_set_is_cut_into_pieces_of_whole_batches(tok: TaskTokenizer, tmp_path: Path) -> None:
    """Eleven batches of two: replay, for which students stand still, waits for four of them at most."""
    work = Work(tmp_path, tok)
    work.request()
    assert len(work.pool) == 3 + 1
    work.finish()
    (oracle,) = work.oracles
    assert [len(piece) for piece in oracle.pieces["a"]] == [4, 4, 3]
    batches = [batch for piece in oracle.pieces["a"] for batch in piece]
    assert [len(batch) for batch in batches] == [2] * 10 + [1]
    assert sorted(index for batch in batches for index in batch) == list(range(21))
    lengths = [len(ids) for ids in work.setup.tests["a"].prompts["ids"].to_pylist()]
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(in_order), "prompts of similar length are decoded together"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_cell_is_scored_once_when_all_its_pieces_are_there(tok: TaskTokenizer, tmp_path: Path, workers: int) -> None:
    work = Work(tmp_path, tok, workers)
    work.request()
    scores = work.finish()
    assert sorted(name for oracle in work.oracles for name in oracle.asked if "score" in name) == ["score a", "score b"]
    right = {"a": 11 / 21, "b": 2 / 3}
    for task, share in right.items():
        record = scores[Cell(0, 2, 0, task)]
        assert record["values"]["em"] == pytest.approx(100 * share)
        assert record["examples"] == SIZES[task]


def test_every_answer_stands_beside_its_question(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = Work(tmp_path, tok, workers=2)
    work.request()
    work.finish()
    record = pq.read_table(tmp_path / "predictions" / "stage-0.epoch-2.student-0.a.parquet").to_pylist()
    items = work.setup.tests["a"].items
    assert [row["sample_id"] for row in record] == [item.sample_id for item in items]
    assert [row["references"] for row in record] == [list(item.references) for item in items]
    assert [row["prediction"] == row["references"][0] for row in record] == [i % 2 == 0 for i in range(21)]
    assert [row["score"] for row in record] == [100.0 if i % 2 == 0 else 0.0 for i in range(21)]


def test_replay_comes_between_two_pieces_and_scores_before_further_pieces(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = Work(tmp_path, tok)
    work.request()
    work.pool.poll()
    work.pool.add([Job("replay", "replay", (), lambda value: None, kind="replay")], urgent=True)
    work.request(stage=1)
    work.finish()
    (oracle,) = work.oracles
    assert oracle.asked == [
        *["answer a", "replay", "answer a", "answer a", "score a", "answer b", "score b"],
        *["answer a", "answer a", "answer a", "score a", "answer b", "score b"],
    ]


def test_cells_are_open_until_they_are_scored(tok: TaskTokenizer, tmp_path: Path) -> None:
    work = Work(tmp_path, tok)
    work.request()
    assert len(work.scoring) == 2
    work.pool.wait(lambda: len(work.scoring) == 1, lambda: None)
    assert set(work.run.scores()) == {Cell(0, 2, 0, "a")}
    work.finish()
    assert len(work.scoring) == 0
    assert work.progress.snapshot().jobs_done == 2, "cells are counted, not pieces"
    assert sum("a em 52.4" in event for event in work.progress.snapshot().events) == 1
