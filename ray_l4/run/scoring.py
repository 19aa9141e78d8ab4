"""Scores checkpoints while training goes on: jobs for the evaluators, records for the run directory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray_l4.cluster.handles import EvaluatorHandle, ModelRef
from ray_l4.cluster.rpc import Ref, Rpc
from ray_l4.methods import scores_together
from ray_l4.run.context import RunContext
from ray_l4.run.general_scoring import GeneralScoring
from ray_l4.run.together import checkpoints_together, description_on_disk
from ray_l4.run.work_queue import Job, WorkQueue
from ray_l4.store.general import GENERAL
from ray_l4.store.records import described, read_weights, write_score
from ray_l4.store.run_directory import TOGETHER, Cell, row_title
from ray_l4.text.chunks import in_chunks
from ray_l4.text.test_sets import Scored, answer_batches

_BATCHES_PER_JOB = 4
"""Batches (``evaluation.chunk``) of a test set in one job. Students are idle while replay is generated, and it has to
wait for at most one such job."""


@dataclass
class _Requested:
    """A cell that is not scored yet."""

    students: Collection[int]
    """Those whose weights it takes."""
    answers: dict[int, str] = field(default_factory=dict)
    """The answers so far."""


class Scoring:
    """Scores every cell (checkpoint, and a task or the general text) once. Results may come late and in any order.

    With ``evaluation.together`` the students that are present are scored together too, once the weights of all of them
    after an epoch are there.
    """

    def __init__(
        self, context: RunContext, rpc: Rpc, queue: WorkQueue, present: Callable[[], Collection[int]] | None = None
    ) -> None:
        """``present``: returns the students that are not lost; None if none ever is."""
        self._context = context
        self._together = scores_together(context.setup.experiment)
        self._present = present or (lambda: context.setup.topology.students)
        self._models: dict[tuple[int, int], dict[int, ModelRef]] = {}
        """(stage, epoch) -> the models so far of the students that will be scored together."""
        self._setup = context.setup
        self._rpc = rpc
        self._queue = queue
        self._requested: dict[Cell, _Requested] = {}
        self._general = GeneralScoring(context)
        self._scored = self._recorded()

    def __len__(self) -> int:
        """Return the number of cells that were requested and are not scored yet."""
        return len(self._requested)

    @property
    def pending(self) -> set[tuple[int, int, int]]:
        """The (stage, epoch, student) of checkpoints with scores that were requested and are not there yet."""
        open_cells = self._requested.items()
        return {(cell.stage, cell.epoch, student) for cell, requested in open_cells for student in requested.students}

    def request(self, stage: int, epoch: int, student: int, weights: Ref[Any], description: Mapping[str, Any]) -> None:
        """Request the missing scores of a checkpoint on all tasks that its stage is scored on."""
        model = ModelRef(Cell(stage, epoch, student, "").checkpoint, self._rpc.put(description), weights)
        self._add_jobs(self._missing(stage, epoch, student), {student: model})
        if self._together:
            models = self._models.setdefault((stage, epoch), {})
            models[student] = model
            self._add_together(stage, epoch, models)

    def request_missing(self, stages: int, descriptions: Mapping[int, Mapping[str, Any]]) -> None:
        """Request the missing scores of the first ``stages`` stages, from the checkpoints on disk.

        ``descriptions``: student -> its model's configuration.
        """
        for stage in range(stages):
            epochs, every = self._setup.experiment.epochs_of(stage), self._every
            result = self._context.directory.result_epoch(stage, epochs)
            self._request_epochs(stage, range(1, epochs + 1) if every else (result,), descriptions)

    def request_starts(self, students: Iterable[int]) -> None:
        """Request the missing perplexities of the models that students begin with."""
        for cell in [cell for student in students for cell in self._general.start_cells(student)]:
            if cell not in self._scored and cell not in self._requested:
                self._add_general(cell, None)

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
            self.request_together_from_disk(stage, epoch)

    def request_from_disk(self, stage: int, epoch: int, student: int, description: Mapping[str, Any]) -> None:
        """Request the missing scores of a checkpoint that is on disk. A student that was lost has no later ones."""
        missing = self._missing(stage, epoch, student)
        checkpoint = self._context.directory.checkpoint(stage, epoch, student)
        if missing and checkpoint.is_dir():
            own = described(checkpoint)
            fits = own.get("vocab_size", None) in (None, description.get("vocab_size"))
            # A model of before the run was extended may have fewer tokens.
            self._add_jobs(missing, {student: self._from_disk(missing[0], description if fits else own)})

    def request_together_from_disk(self, stage: int, epoch: int) -> None:
        """Request the missing scores of all students together, if the checkpoints of all of them are on disk."""
        missing = self._missing(stage, epoch, TOGETHER) if self._together else []
        if missing:
            directory = self._context.directory
            present = None if stage < directory.state().stages_done else self._present()
            places = [
                Cell(stage, epoch, student, "")
                for student in checkpoints_together(directory, self._scored, stage, epoch, present)
            ]
            models = {
                place.student: self._from_disk(
                    place, description_on_disk(directory.checkpoint(stage, epoch, place.student))
                )
                for place in places
            }
            self._add_jobs(missing if models else [], models)

    def _from_disk(self, place: Cell, description: Mapping[str, Any]) -> ModelRef:
        """Return the model of a student's checkpoint on disk. ``place``: any cell of it."""
        weights = read_weights(self._context.directory.checkpoint(place.stage, place.epoch, place.student))
        return ModelRef(place.checkpoint, self._rpc.put(description), self._rpc.put(weights))

    def forget(self, stage: int, first_epoch: int) -> None:
        """Take the scores of a stage again from ``first_epoch`` on: its checkpoints will have other weights."""
        self._scored = {cell for cell in self._scored if cell.stage != stage or cell.epoch < first_epoch}

    def reread(self) -> None:
        """Cancel the scores that are not there yet, and take those in the run directory for all that there are."""
        self.cancel()
        self._scored = self._recorded()

    def cancel(self, stage: int | None = None, student: int | None = None) -> None:
        """Cancel the scores that are not there yet: all, or those of a stage that take the weights of a student."""
        for cell, requested in list(self._requested.items()):
            if stage in (None, cell.stage) and (student is None or student in requested.students):
                del self._requested[cell]
                self._queue.drop(cell)
        for place, models in list(self._models.items()):
            if stage in (None, place[0]):
                models.pop(student, None) if student is not None else models.clear()
            if not models:
                del self._models[place]

    def go_on_without(self, stage: int, student: int) -> None:
        """Cancel what takes the weights of a lost student; all others together are scored without it."""
        epochs = {
            cell.epoch
            for cell, requested in self._requested.items()
            if cell.stage == stage and cell.student == TOGETHER and student in requested.students
        }
        self.cancel(stage, student)
        for epoch in sorted(epochs):
            self.request_together_from_disk(stage, epoch)
        for place, models in list(self._models.items()):
            self._add_together(*place, models)

    def _add_together(self, stage: int, epoch: int, models: Mapping[int, ModelRef]) -> None:
        """Request the scores of all students together, once the models of those that are present are there."""
        if models.keys() >= set(self._present()):
            self._add_jobs(self._missing(stage, epoch, TOGETHER), dict(sorted(models.items())))
            del self._models[stage, epoch]

    def _missing(self, stage: int, epoch: int, student: int) -> list[Cell]:
        cells = [Cell(stage, epoch, student, task) for task in self._setup.stages[stage].scored]
        cells += self._general.cells(stage, epoch, student)
        return [cell for cell in cells if cell not in self._scored and cell not in self._requested]

    def _add_jobs(self, cells: Sequence[Cell], models: Mapping[int, ModelRef]) -> None:
        """Queue the jobs of ``cells``. ``models``: student -> its model; several for ``TOGETHER``."""
        for cell in cells:
            if cell.task == GENERAL:
                self._add_general(cell, models[cell.student])
                continue
            batches = answer_batches(self._setup.tests_of(cell.stage)[cell.task], self._setup.experiment.evaluation)
            chunks = in_chunks(len(batches), _BATCHES_PER_JOB)
            parts = [[batches[number] for number in chunk] for chunk in chunks]
            self._requested[cell] = _Requested(tuple(models))
            jobs = [
                Job(
                    f"{cell.name}, part {number} of {len(parts)}",
                    partial(_answer_batches, models, cell, part),
                    partial(self._gather, cell),
                    owner=cell,
                )
                for number, part in enumerate(parts, start=1)
            ]
            self._queue.add(jobs)

    def _add_general(self, cell: Cell, model: ModelRef | None) -> None:
        self._requested[cell] = _Requested((cell.student,))
        self._queue.add(self._general.jobs(cell, model, partial(self._close, cell)))

    def _close(self, cell: Cell) -> None:
        del self._requested[cell]
        self._scored.add(cell)

    def _recorded(self) -> set[Cell]:
        return {*self._context.directory.scores(), *self._general.recorded()}

    def _gather(self, cell: Cell, part: Mapping[int, str]) -> None:
        """Add answers to a cell. Once it has all, score it before other waiting jobs, since that takes little time."""
        answers = self._requested[cell].answers
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
        self._close(cell)
        tests = self._setup.tests_of(cell.stage)[cell.task]
        record = {
            "stage": cell.stage,
            "epoch": cell.epoch,
            "student": "together" if cell.student == TOGETHER else cell.student,
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
            f"{row_title(cell.student)} after {self._setup.stages[cell.stage].name}, epoch {cell.epoch}: "
            f"{cell.task} {scored.headline} {value:.1f}"
        )


def _answer_batches(
    models: Mapping[int, ModelRef], cell: Cell, batches: Sequence[Sequence[int]], evaluator: EvaluatorHandle
) -> Ref[dict[int, str]]:
    if cell.student == TOGETHER:
        return evaluator.answer_together(cell.checkpoint, models, cell.stage, cell.task, batches)
    return evaluator.answer(models[cell.student], cell.student, cell.stage, cell.task, batches)
