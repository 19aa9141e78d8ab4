"""A finished run as read from its directory, also one written before some of the files and keys existed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_l4.errors import RunDirectoryError
from ray_l4.report.html.steps import Steps, read_steps
from ray_l4.report.markdown import variant_of
from ray_l4.store.run_directory import Cell, RunDirectory, read_json

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Record:
    """What the page shows of one run. Scores are percentages."""

    path: Path
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    scores: Mapping[Cell, float]
    """The headline score of every checkpoint and task."""
    metrics: Mapping[str, str]
    """Task -> name of its headline score."""
    steps: Steps | None
    """None for a run that left no figures of its steps."""

    @property
    def tasks(self) -> list[str]:
        """The columns of a score matrix, in the order of the stream."""
        return list(self.summary["stream"])

    @property
    def stages(self) -> list[str]:
        """The names of a score matrix's rows."""
        return list(self.summary.get("stages") or self.summary["stream"])

    @property
    def students(self) -> list[str]:
        """The students' numbers, as text like in the summary."""
        return list(self.summary["score_matrix"])

    @property
    def variant(self) -> str:
        """The name of the run's row in a table."""
        return variant_of(self.summary)

    def matrix(self, student: str) -> Matrix:
        """The score matrix of a student: a row for each stage, a column for each task."""
        matrix: Matrix = self.summary["score_matrix"][student]
        return matrix

    @property
    def teachers(self) -> RunDirectory | None:
        """The run in which the teachers were trained, if this method has such and the run is there."""
        folder = RunDirectory(self.path).teachers()
        return RunDirectory(folder) if (folder / "summary.json").is_file() else None

    def final_cell(self, student: int, task: str) -> Cell | None:
        """The last checkpoint of a student that was scored on a task."""
        cells = [cell for cell in self.scores if cell.student == student and cell.task == task]
        return max(cells, default=None)

    def text(self, name: str) -> str:
        """A text file of the run."""
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{path}: cannot be read ({error})") from error


def read_record(run: RunDirectory) -> Record:
    """All that the page needs of ``run``. Raises RunDirectoryError if the run did not finish or is damaged."""
    found = run.scores()
    try:
        scores = {cell: float(record["values"][record["headline"]]) for cell, record in found.items()}
        metrics = {cell.task: str(record["headline"]) for cell, record in found.items()}
    except (KeyError, TypeError) as error:
        raise RunDirectoryError(f"{run.path / 'scores'}: a score has no {error}; the run is damaged") from error
    return Record(run.path, run.summary(), read_json(run.path / "manifest.json"), scores, metrics, read_steps(run.path))


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]] | None:
    """Rows of a Parquet file, or None if it is not there. Raises RunDirectoryError if it cannot be used."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{path}: cannot be read as Parquet ({error}); the run is damaged") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise RunDirectoryError(f"{path}: has no column {missing[0]!r}; it holds {', '.join(table.column_names)}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
