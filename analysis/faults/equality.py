"""Whether the results of two runs are equal, bit for bit: weights, scores, answers, replay, figures of all steps."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_TIMES = "_seconds"
"""End of the names of columns that hold durations, in which runs differ."""


def differences(found: Path, expected: Path) -> list[str]:
    """Return what differs between the results in two run directories, one line each; empty if they are equal."""
    lines = []
    for pattern, read in _READERS.items():
        mine, theirs = (_files(run, pattern) for run in (found, expected))
        lines += [f"{name}: missing" for name in sorted(theirs.keys() - mine.keys())]
        lines += [
            f"{name}: there is no such file in the undisturbed run" for name in sorted(mine.keys() - theirs.keys())
        ]
        lines += [
            f"{name}: differs" for name in sorted(mine.keys() & theirs.keys()) if read(mine[name]) != read(theirs[name])
        ]
    return lines + _repeated(found)


def _files(run: Path, pattern: str) -> dict[str, Path]:
    """Return the files of a run that match, by name; without what a killed process had begun to write."""
    found = {str(path.relative_to(run)): path for path in run.glob(pattern)}
    return {name: path for name, path in found.items() if "/." not in name}


def _weights(path: Path) -> bytes:
    return path.read_bytes()


def _score(path: Path) -> Any:
    record = json.loads(path.read_bytes())
    return {key: value for key, value in record.items() if not key.endswith("seconds")}


def _rows(path: Path) -> list[str]:
    """Return the rows without durations, as text: NaN equals itself."""
    return [
        repr({name: value for name, value in row.items() if not name.endswith(_TIMES)})
        for row in pq.read_table(path).to_pylist()
    ]


def _steps(path: Path) -> list[str]:
    return sorted(_rows(path))


_READERS: dict[str, Any] = {
    "checkpoints/*/*/*/model.safetensors": _weights,
    "scores/*.json": _score,
    "predictions/*.parquet": _rows,
    "replay/*.parquet": _rows,
    "guards/*.safetensors": _weights,
    "steps/*.parquet": _steps,
    "teachers/checkpoints/*/*/*/model.safetensors": _weights,
}


def _repeated(run: Path) -> list[str]:
    """Return a line for each step of a student that is on record more than once."""
    count: Counter[tuple[int, int, int]] = Counter()
    for path in run.glob("steps/*.parquet"):
        for row in pq.read_table(path, columns=["stage", "step", "student"]).to_pylist():
            count[row["stage"], row["step"], row["student"]] += 1
    return [f"stage {s}, step {n}, student {k}: {times} times" for (s, n, k), times in count.items() if times > 1]
