"""Which students are scored together, and what their checkpoints on disk tell of their models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ray_l4.store.checkpoints import ADAPTER_CONFIG, checkpoints
from ray_l4.store.records import ADAPTERS, described
from ray_l4.store.run_directory import TOGETHER, Cell, RunDirectory, read_json


def checkpoints_together(
    run: RunDirectory, scored: Collection[Cell], stage: int, epoch: int, present: Collection[int] | None
) -> list[int]:
    """Return the students whose checkpoints after ``epoch`` of a stage are scored together.

    They are those that are ``present`` in a stage under way; None for a finished stage, where they are those that
    finished it: a student that was lost in it may have left a checkpoint of an epoch that the others learned again.
    None are returned if one of their checkpoints is not on disk, since the row would be another one without it.

    ``scored``: the cells that are scored, which tell of checkpoints that are not kept.
    """
    if present is None:
        result = run.result_epoch(stage, run.experiment().epochs_of(stage))
        left = {found.student for found in checkpoints(run) if (found.stage, found.epoch) == (stage, result)}
        known = {cell.student for cell in scored if (cell.stage, cell.epoch) == (stage, result)} - {TOGETHER}
        present = left | known
    complete = all(run.checkpoint(stage, epoch, student).is_dir() for student in present)
    return sorted(present) if complete else []


def description_on_disk(checkpoint: Path) -> Mapping[str, Any]:
    """Return what a checkpoint tells of its model: its configuration, or that of its adapters."""
    adapters = checkpoint / ADAPTER_CONFIG
    return {ADAPTERS: dict(read_json(adapters))} if adapters.is_file() else described(checkpoint)
