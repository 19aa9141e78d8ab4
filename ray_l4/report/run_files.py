"""Files of a run directory, read with errors that name the damaged file. The run need not have finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import matching
from ray_l4.store.run_directory import Cell, RunDirectory
from ray_l4.store.tables import read_table
from ray_l4.store.weight_files import DamagedWeightsError, header


class Headline(NamedTuple):
    """The score that stands for a cell."""

    metric: str
    """Name of the task metric."""
    value: float
    """Percent."""


def read_headlines(run: RunDirectory) -> dict[Cell, Headline]:
    """Return the headline score of every scored checkpoint and task. Raises RunDirectoryError if a file is damaged."""
    found = {}
    for cell, record in run.scores().items():
        metric = str(record["headline"])
        found[cell] = Headline(metric, float(record["values"][metric]))
    return found


def count_parameters(run: RunDirectory, student: int) -> dict[str, Any] | None:
    """Return the ``count`` of parameters in a student's last checkpoint, and whether they are ``adapters`` only.

    None if no checkpoint is left. Only the headers of the weight files are read, not the weights.
    """
    folders = matching(run.path, f"checkpoints/stage-*/epoch-*/student-{student}")
    for folder in sorted(folders, key=_order_of_training, reverse=True):
        files = matching(folder, "*.safetensors")
        if files:
            adapters = any(file.name.startswith("adapter_") for file in files)
            return {"count": sum(map(_num_values, files)), "adapters": adapters}
    return None


def _order_of_training(checkpoint: Path) -> tuple[int, int]:
    """Return the numbers of a checkpoint's stage and epoch."""
    epoch = checkpoint.parent
    return int(epoch.parent.name.partition("-")[2]), int(epoch.name.partition("-")[2])


def _num_values(path: Path) -> int:
    """Return the number of values in a safetensors file. Raises RunDirectoryError if it is damaged."""
    try:
        return sum(entry.num_values for entry in header(path).values())
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read ({error})") from error
    except DamagedWeightsError as error:
        raise RunDirectoryError(f"{path} {error}. Copy the checkpoint again, or delete it.") from error


def read_replay(run: RunDirectory, stage: int, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table | None:
    """Return columns of the replayed examples of a stage; None if nothing was replayed. Raises as ``read_table``."""
    return read_table(run.path / "replay" / f"stage-{stage}.parquet", columns, optional)


def read_questions(run: RunDirectory, cell: Cell) -> set[str]:
    """Return the different questions behind a score; none if its answers, or what was asked, were not kept."""
    table = read_table(run.path / "predictions" / f"{cell.name}.parquet", (), optional=("question",))
    return set(table["question"].to_pylist()) if table is not None and table.num_columns else set()
