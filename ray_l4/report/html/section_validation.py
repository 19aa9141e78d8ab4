"""Section about validation: the losses of every epoch, and the epoch that is the result of its stage."""

from __future__ import annotations

from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.blocks import Note, Section, Table
from ray_l4.report.markdown import VALIDATION_COLUMNS, validation_rows


def validation(run: FinishedRun, prefix: str) -> Section | None:
    """Return the section; None for a run without validation."""
    if not run.validation:
        return None
    note = Note(
        "Loss on the answers of the validation examples, in nats per token, as the mean over the students. The epoch "
        "with the lowest loss is the result of its stage: it was scored, and the next stage began from it."
    )
    return Section(f"{prefix}-validation", "Validation", [note, Table(VALIDATION_COLUMNS, validation_rows(run))])
