"""The figures of a run's steps as columns of numbers, and fewer of them where a drawing has no room for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_l4.errors import RunDirectoryError

SECONDS = ("forward_seconds", "wait_seconds", "backward_seconds", "idle_seconds")
COLUMNS = (
    *("stage", "step", "student", "loss", "lr", "kd_qa", "kd_lm", "bytes_sent", "bytes_received"),
    *SECONDS,
)
LATER = frozenset({"bytes_received"})
"""Columns that older runs do not have."""
POINTS = 240
"""A drawing is about 500 pixels wide: more points than that would only blur it."""


@dataclass(frozen=True)
class Steps:
    """Figures of R rows (a step of a student each), in the order of stage, step and student."""

    columns: Mapping[str, np.ndarray]
    """Name -> ``(R,)`` float64; not-a-number where there is no figure."""
    position_R: np.ndarray
    """Step counted from the run's beginning."""
    starts: Sequence[int]
    """Position of each stage's first step, and the number of all steps."""

    def students(self) -> list[int]:
        """The students that have figures."""
        return [int(student) for student in np.unique(self.columns["student"])]

    def of(self, student: int) -> Steps:
        """The rows of one student."""
        rows = self.columns["student"] == student
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Steps(columns, self.position_R[rows], self.starts)

    def thinned(self, *names: str) -> tuple[np.ndarray, ...]:
        """Middle position, and mean of each of the columns, of runs of neighbouring steps: at most POINTS and one more
        for each stage, since no mean reaches over a stage's end. Steps without a figure do not count; where none has
        one there is not-a-number."""
        width = max(1, -(-self.starts[-1] // POINTS))
        stage_R = np.searchsorted(self.starts, self.position_R, side="right") - 1
        first_R = np.asarray(self.starts)[stage_R]
        bins = stage_R * (self.starts[-1] + 1) + (self.position_R - first_R) // width
        _, inverse = np.unique(bins, return_inverse=True)
        return tuple(_means(values, inverse) for values in (self.position_R, *(self.columns[name] for name in names)))

    def total(self, name: str) -> float:
        """The sum of a column."""
        return float(np.nansum(self.columns[name]))


def _means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    sums = np.bincount(group[known], values[known], minlength=group.max(initial=-1) + 1)
    counts = np.bincount(group[known], minlength=len(sums))
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def read_steps(folder: Path) -> Steps | None:
    """The steps of the run in ``folder``; None if there are none. Raises RunDirectoryError if a file is damaged."""
    parts = [_columns(path) for path in sorted((folder / "steps").glob("*.parquet"))]
    if not parts:
        return None
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    order = np.lexsort([columns[name] for name in ("student", "step", "stage")])
    columns = {name: values[order] for name, values in columns.items()}
    stages, steps = columns["stage"].astype(int), columns["step"]
    lengths = [int(steps[stages == stage].max(initial=-1)) + 1 for stage in range(stages.max(initial=-1) + 1)]
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=int)])
    return Steps(columns, starts[stages] + steps, starts.tolist()) if starts[-1] else None


def _columns(path: Path) -> dict[str, np.ndarray]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{path}: cannot be read as figures of steps ({error}); the run is damaged") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if not LATER.issuperset(missing):
        raise RunDirectoryError(f"{path}: has no column {missing[0]!r}, which the figures of steps need")
    absent = {name: np.full(table.num_rows, np.nan) for name in missing}
    return {name: absent[name] if name in absent else table.column(name).to_numpy().astype(float) for name in COLUMNS}
