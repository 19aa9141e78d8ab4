"""Figures of the steps of a run as columns of numbers, and their means where a drawing has no room for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_l4.store.run_directory import SECONDS, RunDirectory

COLUMNS = (
    *("stage", "epoch", "step", "student", "loss", "lr", "kd_qa", "kd_lm", "bytes_sent"),
    *SECONDS,
)
LATER_COLUMNS = ("bytes_received",)
"""Columns that early runs do not have."""
POINTS = 240
"""Largest number of points of a curve. A drawing is about 500 pixels wide: more points would only blur it."""


@dataclass(frozen=True)
class Steps:
    """Figures of R rows, each a step of a student, in the order of stage, step and student."""

    columns: Mapping[str, np.ndarray]
    """Name -> ``(R,)`` float64; NaN where a figure is missing."""
    position_R: np.ndarray
    """Number of the step, counted from the beginning of the run."""
    starts: Sequence[int]
    """Position of the first step of each stage, then the total number of steps."""

    def students(self) -> list[int]:
        """Return the numbers of the students that have figures."""
        return [int(student) for student in np.unique(self.columns["student"])]

    def of_student(self, student: int) -> Steps:
        """Return the rows of one student."""
        rows = self.columns["student"] == student
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Steps(columns, self.position_R[rows], self.starts)

    def thinned(self, *names: str) -> tuple[np.ndarray, ...]:
        """Return the mean position, and the mean of each named column, of every group of neighbouring steps.

        There are at most POINTS groups and one more for each stage, because no group crosses the end of a stage.
        Missing figures do not count; the mean of a group without any figure is NaN.
        """
        width = max(1, -(-self.starts[-1] // POINTS))
        stage_R = np.searchsorted(self.starts, self.position_R, side="right") - 1
        first_R = np.asarray(self.starts)[stage_R]
        group_R = stage_R * (self.starts[-1] + 1) + (self.position_R - first_R) // width
        _, inverse_R = np.unique(group_R, return_inverse=True)
        return tuple(_means(values, inverse_R) for values in (self.position_R, *(self.columns[name] for name in names)))

    def total(self, name: str) -> float:
        """Return the sum of a column."""
        return float(np.nansum(self.columns[name]))


def _means(values_R: np.ndarray, group_R: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values_R)
    sums = np.bincount(group_R[known], values_R[known], minlength=group_R.max(initial=-1) + 1)
    counts = np.bincount(group_R[known], minlength=len(sums))
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def read_steps(folder: Path) -> Steps | None:
    """Return the steps of the run in ``folder``; None if it has none. Damaged files are left out, with a warning."""
    files = [_columns(table) for table in RunDirectory(folder).step_tables(COLUMNS, LATER_COLUMNS)]
    if not files:
        return None
    columns = {name: np.concatenate([file[name] for file in files]) for name in (*COLUMNS, *LATER_COLUMNS)}
    order = np.lexsort([columns[name] for name in ("student", "step", "stage")])
    columns = {name: values[order] for name, values in columns.items()}
    stages, steps = columns["stage"].astype(int), columns["step"]
    lengths = [int(steps[stages == stage].max(initial=-1)) + 1 for stage in range(stages.max(initial=-1) + 1)]
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=int)])
    return Steps(columns, starts[stages] + steps, starts.tolist()) if starts[-1] else None


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    missing = {name: np.full(table.num_rows, np.nan) for name in LATER_COLUMNS if name not in table.column_names}
    return missing | {name: table.column(name).to_numpy().astype(float) for name in table.column_names}
