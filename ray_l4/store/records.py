"""What a run writes while it goes: checkpoints, scores, replay, step figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import write_folder, write_json, write_table
from ray_l4.store.run_directory import Cell, RunDirectory

WEIGHTS = "model.safetensors"

STEPS = pa.schema(
    [
        ("stage", pa.int32()),
        ("epoch", pa.int32()),
        ("step", pa.int32()),
        ("student", pa.int32()),
        *[
            (name, pa.float64())
            for name in (
                "loss",
                "nll_qa",
                "kd_qa",
                "nll_lm",
                "kd_lm",
                "lr",
                "grad_norm",
                "samples",
                "tokens",
                "bytes_sent",
                "forward_seconds",
                "wait_seconds",
                "backward_seconds",
                "idle_seconds",
            )
        ],
    ]
)
"""Figures of a step and student. Losses are per token; ``wait`` is between a student's own forward and the moment its
teachers' predictions are there, ``idle`` between its last update and its next forward."""


def write_checkpoint(folder: Path, weights: np.ndarray, description: Mapping[str, Any], tokenizer: Path) -> None:
    """A folder that ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained`` load.

    ``weights`` are safetensors bytes, ``description`` the model's ``config.json``, ``tokenizer`` a folder to copy.
    """

    def fill(beside: Path) -> None:
        for file in tokenizer.iterdir():
            (beside / file.name).write_bytes(file.read_bytes())
        write_json(beside / "config.json", dict(description))
        weights.tofile(beside / WEIGHTS)

    write_folder(folder, fill)


def read_weights(folder: Path) -> np.ndarray:
    """The bytes of a checkpoint's weights. Raises RunDirectoryError if they are not there."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise RunDirectoryError(f"{path}: is not there, but the run's state.json says that it was written")
    return np.fromfile(path, dtype=np.uint8)


def write_score(run: RunDirectory, cell: Cell, record: Mapping[str, Any], predictions: Mapping[str, list[Any]]) -> None:
    """One cell of the score matrix, and the answers behind it. The score comes last: where it is, all of it is."""
    write_table(run.path / "predictions" / f"{cell.name}.parquet", pa.table(dict(predictions)))
    write_json(run.path / "scores" / f"{cell.name}.json", dict(record))


def write_steps(run: RunDirectory, stage: int, epoch: int, rows: Sequence[Mapping[str, float]]) -> None:
    """The figures of one epoch; a head that a method does not train has no figures."""
    complete = [{name: row.get(name) for name in STEPS.names} for row in rows]
    table = pa.Table.from_pylist(complete, schema=STEPS)
    write_table(run.path / "steps" / f"stage-{stage}.epoch-{epoch}.parquet", table)


def write_replay(run: RunDirectory, stage: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every pseudo-example of a stage: its task, text, and why it was dropped if it was."""
    schema = pa.schema(
        [
            ("index", pa.int32()),
            ("task", pa.string()),
            ("valid", pa.bool_()),
            ("reason", pa.string()),
            ("text", pa.string()),
            ("ids", pa.list_(pa.int32())),
        ]
    )
    write_table(run.path / "replay" / f"stage-{stage}.parquet", pa.Table.from_pylist(list(rows), schema=schema))
