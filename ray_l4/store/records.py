"""What a run writes while it goes: checkpoints, scores, replay, step figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import write_file, write_folder, write_json, write_table
from ray_l4.store.run_directory import Cell, RunDirectory

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTERS = "adapters"
"""Entry of a model's description that holds the configuration of its adapters, if it has any."""

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
                "penalty",
                "lr",
                "grad_norm",
                "samples",
                "tokens",
                "bytes_sent",
                "bytes_received",
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
    Where the description has adapters, the weights are theirs alone, and it is peft's
    ``AutoPeftModelForCausalLM.from_pretrained`` that loads the folder.
    """
    adapters = description.get(ADAPTERS)

    def fill(beside: Path) -> None:
        for file in tokenizer.iterdir():
            (beside / file.name).write_bytes(file.read_bytes())
        write_json(beside / (ADAPTER_CONFIG if adapters else CONFIG), dict(adapters or description))
        weights.tofile(beside / (ADAPTER_WEIGHTS if adapters else WEIGHTS))

    write_folder(folder, fill)


def read_weights(folder: Path) -> np.ndarray:
    """The bytes of a checkpoint's weights. Raises RunDirectoryError if they are not there."""
    for path in (folder / WEIGHTS, folder / ADAPTER_WEIGHTS):
        if path.is_file():
            return np.fromfile(path, dtype=np.uint8)
    raise RunDirectoryError(f"{folder / WEIGHTS}: is not there, but the run's state.json says that it was written")


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
    """Every replayed example of a stage: who generated it, its task, text, and why it was dropped if it was."""
    schema = pa.schema(
        [
            ("index", pa.int32()),
            ("student", pa.int32()),
            ("task", pa.string()),
            ("valid", pa.bool_()),
            ("reason", pa.string()),
            ("text", pa.string()),
            ("ids", pa.list_(pa.int32())),
        ]
    )
    write_table(run.path / "replay" / f"stage-{stage}.parquet", pa.Table.from_pylist(list(rows), schema=schema))


def write_answers(run: RunDirectory, task: str, sample_ids: Sequence[str], answers: Sequence[str]) -> None:
    """A teacher's answers to the training examples of its task."""
    table = pa.table({"sample_id": list(sample_ids), "answer": list(answers)})
    write_table(run.answers(task), table)


def write_guard(run: RunDirectory, stage: int, student: int, data: np.ndarray) -> None:
    """What a student's guard knows after a stage."""
    write_file(run.guard(stage, student), data.tofile)


def read_guard(run: RunDirectory, stage: int, student: int) -> np.ndarray:
    """What ``write_guard`` wrote."""
    return np.fromfile(run.guard(stage, student), dtype=np.uint8)


def write_timeline(run: RunDirectory, spans: Sequence[Mapping[str, Any]]) -> None:
    """Who did what from when to when, in seconds since 1970."""
    schema = pa.schema(
        [
            ("lane", pa.string()),
            ("kind", pa.string()),
            ("label", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
        ]
    )
    write_table(run.path / "timeline.parquet", pa.Table.from_pylist(list(spans), schema=schema))
