"""Scoring of checkpoints while training goes on: jobs for the evaluators, records for the run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ray_l4.cluster.rpc import Transport
from ray_l4.learner.answering import Scored, answer_batches
from ray_l4.learner.decoding import in_chunks
from ray_l4.monitor.progress import Progress
from ray_l4.monitor.tensorboard import TensorBoardLog
from ray_l4.run.work_queue import Job, WorkPool
from ray_l4.setup.setup import Setup
from ray_l4.store.records import read_weights, write_score
from ray_l4.store.run_directory import Cell, RunDirectory

_BATCHES_PER_JOB = 4
"""Batches (``evaluation.chunk``) of a test set that an evaluator answers at a stretch: replay, for which students
stand still, waits for no more than that."""


class Scoring:
    """Every cell (checkpoint, task) is scored once; results may come late and in any order."""

    def __init__(
        self,
        setup: Setup,
        run: RunDirectory,
        transport: Transport,
        pool: WorkPool,
        progress: Progress,
        board: TensorBoardLog,
    ) -> None:
        self._setup = setup
        self._run = run
        self._transport = transport
        self._pool = pool
        self._progress = progress
        self._board = board
        self._answers: dict[Cell, dict[int, str]] = {}
        """Cells that were asked for and are not scored yet, with the answers that are there."""
        self._scored = set(run.scores())

    def __len__(self) -> int:
        """Cells that are still to be scored."""
        return len(self._answers)

    @property
    def epochs(self) -> range:
        """The epochs whose checkpoints are written and scored, counted from 1."""
        last = self._setup.experiment.training.epochs
        return range(1 if self._setup.experiment.evaluation.when == "epoch" else last, last + 1)

    def request(self, stage: int, epoch: int, student: int, weights: Any, description: Mapping[str, Any]) -> None:
        """Have a checkpoint, whose weights are behind the reference, scored on its tasks."""
        self._ask(self._cells(stage, epoch, student), weights, description)

    def _cells(self, stage: int, epoch: int, student: int) -> list[Cell]:
        return [Cell(stage, epoch, student, task) for task in self._setup.stages[stage].scored]

    def request_missing(self, stages: int, descriptions: Mapping[int, Mapping[str, Any]]) -> None:
        """Have scored what the first ``stages`` stages left unscored, from the checkpoints on disk.

        ``descriptions``: student -> its model's configuration.
        """
        for stage in range(stages):
            for epoch in self.epochs:
                for student in descriptions:
                    missing = [cell for cell in self._cells(stage, epoch, student) if cell not in self._scored]
                    # A student that was lost on the way has no later checkpoint.
                    if missing and self._run.checkpoint(stage, epoch, student).is_dir():
                        weights = read_weights(self._run.checkpoint(stage, epoch, student))
                        self._ask(missing, self._transport.put(weights), descriptions[student])

    def forget(self, stage: int, student: int | None = None) -> None:
        """Give up the scores of a stage that are not in yet, of one student; or all scores, as it is learned again."""
        if student is None:
            self._scored = {cell for cell in self._scored if cell.stage != stage}
        for cell in [cell for cell in self._answers if cell.stage == stage and student in (None, cell.student)]:
            del self._answers[cell]
            self._pool.drop(cell)

    def _ask(self, cells: Sequence[Cell], weights: Any, description: Mapping[str, Any]) -> None:
        shared = self._transport.put(description)
        for cell in cells:
            batches = answer_batches(self._setup.tests[cell.task], self._setup.experiment.evaluation)
            chunks = in_chunks(len(batches), _BATCHES_PER_JOB)
            pieces = [[batches[number] for number in chunk] for chunk in chunks]
            self._answers[cell] = {}
            for number, piece in enumerate(pieces, start=1):
                name = f"{cell.name}, part {number} of {len(pieces)}"
                arguments = (cell.checkpoint, cell.student, shared, weights, cell.task, piece)
                self._pool.add([Job(name, "answer", arguments, partial(self._gather, cell), owner=cell)])

    def _gather(self, cell: Cell, part: Mapping[int, str]) -> None:
        """Once all parts of a cell are there, have it scored, before anything else that waits: it takes little time."""
        answers = self._answers[cell]
        answers.update(part)
        if len(answers) == len(self._setup.tests[cell.task].items):
            predictions = [answers[index] for index in range(len(answers))]
            job = Job(f"{cell.name}, score", "score", (cell.task, predictions), partial(self._take, cell), owner=cell)
            self._pool.add([job], urgent=True)

    def _take(self, cell: Cell, scored: Scored) -> None:
        del self._answers[cell]
        self._scored.add(cell)
        items = self._setup.tests[cell.task].items
        record = {
            "stage": cell.stage,
            "epoch": cell.epoch,
            "student": cell.student,
            "task": cell.task,
            "headline": scored.headline,
            "values": scored.values,
            "examples": len(items),
        }
        predictions: dict[str, list[Any]] = {
            "sample_id": [item.sample_id for item in items],
            "prediction": scored.predictions,
            "references": [list(item.references) for item in items],
            "score": scored.item_scores,
        }
        write_score(self._run, cell, record, predictions)
        value = scored.values[scored.headline]
        self._board.log_score(cell, value)
        self._progress.record_score(
            f"student {cell.student} after {self._setup.stages[cell.stage].name}, epoch {cell.epoch}: "
            f"{cell.task} {scored.headline} {value:.1f}"
        )
