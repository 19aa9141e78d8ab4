"""Files that a run writes as it proceeds: checkpoints, scores, replayed examples, figures of steps."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.atomic import matching, write_file, write_folder, write_json, write_table
from ray_l4.store.checkpoints import ADAPTER_CONFIG
from ray_l4.store.checksums import add_sum, write_sums
from ray_l4.store.run_directory import Cell, RunDirectory, read_json
from ray_l4.store.sealed import write_record
from ray_l4.store.tables import read_table
from ray_l4.store.weight_files import find_damage

log = logging.getLogger("ray_l4.coordinator")

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_LOST_FILE = "Restore it from a copy of the run (ray-l4 resume ADDRESS --run-dir FOLDER), or start a new run."

ADAPTERS = "adapters"
"""Key of a model description for the configuration of its adapters, if the model has any."""

CODE = "code"
"""Key of a model description for the Python files that came with the model, if any: name -> text."""

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
                "skipped",
            )
        ],
    ]
)
"""Figures of one step of one student. Losses are per token; ``skipped`` is 1 for a step without an update, because its
loss or gradient was not finite (null in early runs). ``wait_seconds`` is the time from the end of the student's
forward pass until its teachers' predictions have arrived; ``idle_seconds``, from its last update to its next forward
pass."""


def write_checkpoint(folder: Path, weights: np.ndarray, description: Mapping[str, Any], tokenizer: Path) -> None:
    """Write a folder for ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``.

    ``weights`` are safetensors bytes, ``description`` is the model's ``config.json`` and ``CODE``, ``tokenizer`` a
    folder to copy. If the description has adapters, the weights are only those of the adapters, and peft's
    ``AutoPeftModelForCausalLM.from_pretrained`` loads the folder.
    """
    adapters, code = description.get(ADAPTERS), description.get(CODE, {})
    settings = adapters or {key: value for key, value in description.items() if key != CODE}

    def fill(temporary: Path) -> None:
        for file in tokenizer.iterdir():
            (temporary / file.name).write_bytes(file.read_bytes())
        for name, text in code.items():
            (temporary / name).write_text(text, encoding="utf-8")
        write_json(temporary / (ADAPTER_CONFIG if adapters else CONFIG), dict(settings))
        write_bytes(temporary / (ADAPTER_WEIGHTS if adapters else WEIGHTS), weights)
        write_sums(temporary)

    write_folder(folder, fill)


def read_weights(folder: Path) -> np.ndarray:
    """Read the bytes of a checkpoint's weights. Raises DamagedError if the file is missing or damaged."""
    return undamaged(weights_file(folder))


def weights_file(folder: Path) -> Path:
    """Return the file of a checkpoint's weights. Raises DamagedError if there is none."""
    for path in (folder / WEIGHTS, folder / ADAPTER_WEIGHTS):
        if path.is_file():
            return path
    raise DamagedError(
        f"{folder / WEIGHTS}: is missing, although the run's state.json says that it was written. {_LOST_FILE}"
    )


def described(checkpoint: Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint's model.

    It is empty if the checkpoint holds adapters, whose base model the experiment names.
    """
    path = checkpoint / CONFIG
    return read_json(path) if path.is_file() else {}


def undamaged(path: Path) -> np.ndarray:
    """Read the bytes of a safetensors file.

    Raises DamagedError if it is missing, not as long as its header says, or has not the checksum of its folder, and
    RunDirectoryError if the storage does not read it.
    """
    try:
        damaged = find_damage(path) if path.is_file() else "is missing"
        if damaged is None:
            return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read ({error.strerror}). Resume the run when it can.") from error
    raise DamagedError(f"{path} {damaged}. {_LOST_FILE}")


def write_score(run: RunDirectory, cell: Cell, record: Mapping[str, Any], predictions: Mapping[str, list[Any]]) -> None:
    """Write one score and the answers it is based on. The score comes last: if it exists, so do the answers."""
    write_table(run.path / "predictions" / f"{cell.name}.parquet", pa.table(dict(predictions)))
    write_record(run.path / "scores" / f"{cell.name}.json", record)


def write_steps(run: RunDirectory, stage: int, epoch: int, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the figures of one epoch."""
    write_table(run.steps(stage, epoch), steps_table(rows))


def steps_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return figures of steps as a table. Null are those that a row lacks, as an untrained head's, or not finite."""
    known = [{name: value for name, value in row.items() if value is not None and isfinite(value)} for row in rows]
    return pa.Table.from_pylist([{name: row.get(name) for name in STEPS.names} for row in known], schema=STEPS)


def write_replay(run: RunDirectory, stage: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all replayed examples of a stage: generating student, task, text, and the reason if it was dropped."""
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
    write_table(run.replay(stage), pa.Table.from_pylist(list(rows), schema=schema))
    shutil.rmtree(_chunks(run, stage), ignore_errors=True)


def write_generated(run: RunDirectory, stage: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a chunk of the pseudo-examples of a stage (index, student, task, ids), until ``write_replay`` has all."""
    write_table(_chunks(run, stage) / f"{rows[0]['index']}.parquet", pa.Table.from_pylist(list(rows)))


def read_generated(run: RunDirectory, stage: int) -> Iterator[dict[str, Any]]:
    """Yield the pseudo-examples of a stage on record (index, student, task, ids). A damaged file counts as missing."""
    for path in (run.replay(stage), *matching(_chunks(run, stage), "*.parquet")):
        if path.is_file():
            try:
                table = read_table(path, ("index", "student", "task", "ids"))
                yield from [] if table is None else table.to_pylist()
            except RunDirectoryError as error:
                log.warning("%s It is generated again.", error)


def _chunks(run: RunDirectory, stage: int) -> Path:
    return run.path / "replay" / f"stage-{stage}.chunks"


def write_answers(run: RunDirectory, item: str, sample_ids: Sequence[str], answers: Sequence[str]) -> None:
    """Write a task teacher's answers to the training examples of an item of the stream."""
    table = pa.table({"sample_id": list(sample_ids), "answer": list(answers)})
    write_table(run.answers(item), table)


def write_guard(run: RunDirectory, stage: int, student: int, data: np.ndarray) -> None:
    """Write the state of a student's guard after a stage."""
    write_file(run.guard(stage, student), lambda temporary: write_bytes(temporary, data))
    add_sum(run.guard(stage, student))


def read_guard(run: RunDirectory, stage: int, student: int) -> np.ndarray:
    """Read the state that ``write_guard`` wrote. Raises DamagedError if the file is missing or damaged."""
    return undamaged(run.guard(stage, student))


def write_bytes(path: Path, data: np.ndarray) -> None:
    """Write ``data`` (uint8). An error tells its cause; that of ``data.tofile`` does not tell that the disk is full."""
    with path.open("wb") as file:
        file.write(data.data)


def write_timeline(run: RunDirectory, spans: Sequence[Mapping[str, Any]]) -> None:
    """Write the spans of work of all processes. Times are in seconds since 1970."""
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
