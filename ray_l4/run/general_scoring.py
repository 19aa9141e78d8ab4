"""Perplexities on the general text: jobs for the evaluators, records for the run directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray_l4.cluster.handles import EvaluatorHandle, ModelRef
from ray_l4.cluster.rpc import Ref
from ray_l4.metrics.perplexity import perplexity
from ray_l4.run.context import RunContext
from ray_l4.run.work_queue import Job
from ray_l4.store.general import GENERAL, read_general, start_cell, write_general
from ray_l4.store.run_directory import START, TOGETHER, Cell
from ray_l4.text.chunks import in_chunks
from ray_l4.text.general_text import GeneralText

_WINDOWS_PER_JOB = 16
"""Windows of the general text in one job: replay, for which students are idle, has to wait for at most one."""


class GeneralScoring:
    """Measures models on the general text, if the run has one. ``Scoring`` owns which cells are open."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._text = context.setup.general

    def recorded(self) -> set[Cell]:
        """Return the cells that are on record, of this text."""
        if self._text is None:
            return set()
        records = read_general(self._context.directory)
        return {cell for cell, record in records.items() if record["digest"] == self._text.digest}

    def cells(self, stage: int, epoch: int, student: int) -> list[Cell]:
        """Return the cell of a checkpoint; none without a general text, or for all students together."""
        return [] if self._text is None or student == TOGETHER else [Cell(stage, epoch, student, GENERAL)]

    def start_cells(self, student: int) -> list[Cell]:
        """Return the cell of the model that a student begins with; none without a general text.

        A student of several peers begins with the weights of one of them, whose run has its perplexity.
        """
        fused = self._context.setup.method.has_peer_teachers
        return [] if self._text is None or fused else [start_cell(student)]

    def jobs(self, cell: Cell, model: ModelRef | None, done: Callable[[], None]) -> list[Job[list[float]]]:
        """Return the jobs that measure a model. ``model``: None for the one that the student begins with.

        ``done`` is called when the result of the last job is on record.
        """
        assert self._text is not None
        chunks = in_chunks(len(self._text.windows), _WINDOWS_PER_JOB)
        losses: dict[range, list[float]] = {}

        def gather(chunk: range, found: list[float]) -> None:
            losses[chunk] = found
            if len(losses) == len(chunks):
                # In the order of the text, so that the last digits do not depend on which evaluator was first.
                self._record(cell, math.fsum(loss for own in chunks for loss in losses[own]))
                done()

        return [
            Job(
                f"{cell.checkpoint}, general text, part {number} of {len(chunks)}",
                partial(_measure, model, cell, chunk),
                partial(gather, chunk),
                owner=cell,
            )
            for number, chunk in enumerate(chunks, start=1)
        ]

    def _record(self, cell: Cell, nll: float) -> None:
        assert self._text is not None
        context = self._context
        record = general_record(self._text, cell, nll)
        write_general(context.directory, cell, record)
        value = record["perplexity"]
        if value is not None:
            context.curves.log_general(cell, value)
        at = "before the first stage"
        if cell.stage != START:
            at = f"after {context.setup.stages[cell.stage].name}, epoch {cell.epoch}"
        shown = "not finite" if value is None else f"{value:.2f}"
        context.progress.record_score(f"student {cell.student} {at}: perplexity on general text {shown}")


def general_record(text: GeneralText, cell: Cell, nll: float) -> Mapping[str, Any]:
    """Return the record of a model. ``nll``: its loss on the whole text, in nats."""
    place = {} if cell.stage == START else {"stage": cell.stage, "epoch": cell.epoch}
    value = perplexity(nll, text.predicted)
    return {
        "student": cell.student,
        **place,
        "perplexity": value if math.isfinite(value) else None,  # JSON has no infinity
        "text": text.name,
        "tokens": text.tokens,
        "predicted": text.predicted,
        "digest": text.digest,
    }


def _measure(model: ModelRef | None, cell: Cell, windows: range, evaluator: EvaluatorHandle) -> Ref[list[float]]:
    if model is None:
        return evaluator.general_at_start(cell.checkpoint, cell.student, windows)
    return evaluator.general(model, cell.student, windows)
