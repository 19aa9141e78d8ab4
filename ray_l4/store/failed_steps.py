"""Failed steps on disk: all that it takes to repeat a step whose loss or gradient is not finite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import matching, write_table
from ray_l4.store.checksums import write_sums
from ray_l4.store.sealed import write_record

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from ray_l4.store.run_directory import RunDirectory

BATCH, MEMORY, GUARD, TARGETS, WHY = (
    *("batch.parquet", "memory.parquet", "guard.safetensors", "targets.safetensors", "why.json"),
)
_NAME = re.compile(r"stage-(\d+)\.step-(\d+)\.student-(\d+)")


class StepPlace(NamedTuple):
    """Which step of which student."""

    stage: int
    step: int
    student: int

    def folder(self, run: RunDirectory) -> Path:
        """Return where the step is kept."""
        return run.path / "debug" / f"stage-{self.stage}.step-{self.step}.student-{self.student}"


def add_failed_step(
    folder: Path,
    why: Mapping[str, Any],
    tables: Mapping[str, pa.Table | None],
    arrays: Mapping[str, np.ndarray | None],
) -> None:
    """Add to the checkpoint in ``folder`` the tables and safetensors bytes that are not None, by file name, and why."""
    for name, table in tables.items():
        if table is not None:
            write_table(folder / name, table)
    for name, array in arrays.items():
        if array is not None:
            (folder / name).write_bytes(array.tobytes())
    write_record(folder / WHY, why)
    write_sums(folder)


def as_json(figures: Mapping[str, float]) -> dict[str, float | str]:
    """Return figures as JSON values: JSON has no numbers for those that are not finite."""
    return {name: value if isfinite(value) else str(value) for name, value in figures.items()}


def failed_steps(run: RunDirectory, student: int | None) -> list[StepPlace]:
    """Return the failed steps that a run directory keeps, of one student or all. Raises RunDirectoryError if none."""
    names = [_NAME.fullmatch(path.name) for path in matching(run.path / "debug", "*") if (path / WHY).is_file()]
    found = sorted(StepPlace(*map(int, name.groups())) for name in names if name)
    wanted = [place for place in found if student in (None, place.student)]
    if not wanted:
        others = ", ".join(str(own.student) for own in found)
        raise RunDirectoryError(
            f"{run.path}: keeps no failed step{'' if student is None else f' of student {student}'}. "
            + (f"It has those of: {others}." if found else "A run keeps one if a loss or gradient is not finite.")
        )
    return wanted
