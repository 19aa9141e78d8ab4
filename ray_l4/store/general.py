"""Records of perplexities on the general text: ``general/start.student-N.json``, and one for each scored checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_l4.store.atomic import matching
from ray_l4.store.record_types import GeneralRecord
from ray_l4.store.run_directory import START, Cell, RunDirectory, read_record
from ray_l4.store.sealed import write_record

GENERAL = ""
"""Stands for the general text where a cell names a task; no task has this name."""
FOLDER = "general"
WINDOWS = f"{FOLDER}/windows.parquet"
"""The text that was measured last, as tokens, with which a run goes on when its file is gone."""
_FILE = re.compile(r"(?:start|stage-(\d+)\.epoch-(\d+))\.student-(\d+)\.json")


def start_cell(student: int) -> Cell:
    """Return the cell of the model that a student begins its run with."""
    return Cell(START, 0, student, GENERAL)


def write_general(run: RunDirectory, cell: Cell, record: Mapping[str, Any]) -> None:
    """Write the record of one model (``GeneralRecord``)."""
    write_record(run.path / FOLDER / f"{cell.checkpoint}.json", record)


def read_general(run: RunDirectory) -> dict[Cell, dict[str, Any]]:
    """Read all records. Raises RunDirectoryError if one of them is damaged."""
    return {cell: read_record(path, GeneralRecord) for path, cell in general_files(run)}


def general_files(run: RunDirectory) -> Iterator[tuple[Path, Cell]]:
    """Yield the files of all records."""
    for path in matching(run.path / FOLDER, "*.json"):
        match = _FILE.fullmatch(path.name)
        if match:
            stage, epoch = (START, 0) if match[1] is None else (int(match[1]), int(match[2]))
            yield path, Cell(stage, epoch, int(match[3]), GENERAL)
