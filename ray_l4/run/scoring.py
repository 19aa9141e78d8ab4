"""Scores checkpoints while training goes on: jobs for the evaluators, records for the run directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ray_l4.cluster.handles import EvaluatorHandle, ModelRef
from ray_l4.cluster.rpc import Ref, Rpc
from ray_l4.run.context import RunContext
from ray_l4.run.work_queue import Job, WorkQueue
from ray_l4.store.records import described, read_weights, write_score
from ray_l4.store.run_directory import Cell
from ray_l4.text.chunks import in_chunks
from ray_l4.text.test_sets import Scored, answer_batches

_BATCHES_PER_JOB = 4
"""Batches (``evaluation.chunk``) of a test set in one job. Students are idle while replay is generated, and it has to
wait for at most one such job."""


class Scoring:
    """Scores every cell (checkpoint, task) once. Results may come late and in any order."""

    def __init__(self, context: RunContext, rpc: Rpc, queue: WorkQueue) -> None:
        self._context = context
        self._setup = context.setup
        self._rpc = rpc
        self._queue = queue
        self._answers: dict[Cell, dict[int, str]] = {}
        """Cells that were requested and are not scored yet, with their answers so far."""
        self._scored = set(context.directory.scores())

    def __len__(self) -> int:
        """Return the number of cells that were requested and are not scored yet."""
        return len(self._answers)

    @property
    def pending(self) -> set[tuple[int, int, int]]:
        """The (stage, epoch, student) of checkpoints with scores that were requested and are not there yet."""
        return {(cell.stage, cell.epoch, cell.student) for cell in self._answers}

    def request(self, stage: int, epoch: int, student: int, weights: Ref[Any], description: Mapping[str, Any]) -> None:
        """Request the missing scores of a checkpoint on all tasks that its stage is scored on."""
        self._add_jobs(self._missing(stage, epoch, student), weights, description)

    def request_missing(self, stages: int, descriptions: Mapping[int, Mapping[str, Any]]) -> None:
        """Request the missing scores of the first ``stages`` stages, from the checkpoints on disk.

        ``descriptions``: student -> its model's configuration.
        """
        for stage in range(stages):
            epochs, every = self._setup.experiment.epochs_of(stage), self._every
            result = self._context.directory.result_epoch(stage, epochs)
            self._request_epochs(stage, range(1, epochs + 1) if every else (result,), descriptions)

    def request_begun(self, stage: int, epoch: int, descriptions: Mapping[int, Mapping[str, Any]]) -> None:
        """Request the missing scores of the epochs before ``epoch`` of a stage under way."""
        if self._every:
            self._request_epochs(stage, range(1, epoch), descriptions)

    @property
    def _every(self) -> bool:
        return self._setup.experiment.evaluation.when == "epoch"

    def _request_epochs(self, stage: int, epochs: Iterable[int], descriptions: Mapping[int, Mapping[str, Any]]) -> None:
        for epoch in epochs:
            for student, description in descriptions.items():
                self.request_from_disk(stage, epoch, student, description)

    def request_from_disk(self, stage: int, epoch: int, student: int, description: Mapping[str, Any]) -> None:
        """Request the missing scores of a checkpoint that is on disk. A student that was lost has no later ones."""
        missing = self._missing(stage, epoch, student)
        checkpoint = self._context.directory.checkpoint(stage, epoch, student)
        if missing and checkpoint.is_dir():
            own = described(checkpoint)
            fits = own.get("vocab_size", None) in (None, description.get("vocab_size"))
            # A model of before the run was extended may have fewer tokens.
            self._add_jobs(missing, self._rpc.put(read_weights(checkpoint)), description if fits else own)

    def forget(self, stage: int, first_epoch: int) -> None:
        """Take the scores of a stage again from ``first_epoch`` on: its checkpoints will have other weights."""
        self._scored = {cell for cell in self._scored if cell.stage != stage or cell.epoch < first_epoch}

    def reread(self) -> None:
        """Cancel the scores that are not there yet, and take those in the run directory for all that there are."""
        self.cancel()
        self._scored = set(self._context.directory.scores())

    def cancel(self, stage: int | None = None, student: int | None = None) -> None:
        """Cancel the scores that are not there yet: all, or those of a stage and student."""
        for cell in [cell for cell in self._answers if stage in (None, cell.stage) and student in (None, cell.student)]:
            del self._answers[cell]
            self._queue.drop(cell)

    def _missing(self, stage: int, epoch: int, student: int) -> list[Cell]:
        cells = [Cell(stage, epoch, student, task) for task in self._setup.stages[stage].scored]
        return [cell for cell in cells if cell not in self._scored and cell not in self._answers]

    def _add_jobs(self, cells: Sequence[Cell], weights: Ref[Any], description: Mapping[str, Any]) -> None:
        shared = self._rpc.put(description)
        for cell in cells:
            batches = answer_batches(self._setup.tests_of(cell.stage)[cell.task], self._setup.experiment.evaluation)
            chunks = in_chunks(len(batches), _BATCHES_PER_JOB)
            parts = [[batches[number] for number in chunk] for chunk in chunks]
            model = ModelRef(cell.checkpoint, shared, weights)
            self._answers[cell] = {}
            jobs = [
                Job(
                    f"{cell.name}, part {number} of {len(parts)}",
                    partial(_answer_batches, model, cell, part),
                    partial(self._gather, cell),
                    owner=cell,
                )
                for number, part in enumerate(parts, start=1)
            ]
            self._queue.add(jobs)

    def _gather(self, cell: Cell, part: Mapping[int, str]) -> None:
        """Add answers to a cell. Once it has all, score it before other waiting jobs, since that takes little time."""
        answers = self._answers[cell]
        answers.update(part)
        if len(answers) == len(self._setup.tests[cell.task].items):
            predictions = [answers[index] for index in range(len(answers))]
            job = Job(
                f"{cell.name}, score",
                lambda evaluator: evaluator.score(cell.task, predictions),
                partial(self._take, cell),
                owner=cell,
            )
            self._queue.add([job], urgent=True)

    def _take(self, cell: Cell, scored: Scored) -> None:
        del self._answers[cell]
        self._scored.add(cell)
        tests = self._setup.tests_of(cell.stage)[cell.task]
        record = {
            "stage": cell.stage,
            "epoch": cell.epoch,
            "student": cell.student,
            "task": cell.task,
            "headline": scored.headline,
            "values": scored.values,
            "examples": len(tests.items),
            "max_new_tokens": tests.max_new_tokens,
            "reserved": tests.reserved,
        }
        predictions: dict[str, list[Any]] = {
            "sample_id": [item.sample_id for item in tests.items],
            **{name: list(texts) for name, texts in tests.asked.items()},
            **({"retrieved": [list(names) for names in tests.shown]} if tests.shown else {}),
            "prediction": scored.predictions,
            "references": [list(item.references) for item in tests.items],
            "score": scored.item_scores,
        }
        write_score(self._context.directory, cell, record, predictions)
        value = scored.values[scored.headline]
        self._context.curves.log_score(cell, value)
        self._context.progress.record_score(
            f"student {cell.student} after {self._setup.stages[cell.stage].name}, epoch {cell.epoch}: "
            f"{cell.task} {scored.headline} {value:.1f}"
        )


def _answer_batches(
    model: ModelRef, cell: Cell, batches: Sequence[Sequence[int]], evaluator: EvaluatorHandle
) -> Ref[dict[int, str]]:
    return evaluator.answer(model, cell.student, cell.stage, cell.task, batches)
