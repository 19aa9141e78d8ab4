"""Whether the results of two runs are equal, bit for bit.

Weights, scores, answers, replay, guards, validation, warnings, the summary, and figures of all steps.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_l4.store.sealed import SEAL

_TIMES = "seconds"
"""End of the names of columns and values that hold durations, in which runs differ."""
_OF_THE_PROCESSES = ("peak_memory_bytes", "restarts", "exchange", SEAL)
"""What else of a record tells how a run was carried out, not what it learned; and the checksum, which covers both."""


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


def _record(path: Path) -> str:
    """Return a record as text: NaN equals itself."""
    record = json.loads(path.read_bytes())
    return repr({k: v for k, v in record.items() if not k.endswith(_TIMES) and k not in _OF_THE_PROCESSES})


def _rows(path: Path) -> list[str]:
    """Return the rows without durations, as text: NaN equals itself."""
    return [
        repr({name: value for name, value in row.items() if not name.endswith(_TIMES)})
        for row in pq.read_table(path).to_pylist()
    ]


def _steps(path: Path) -> list[str]:
    return sorted(_rows(path))


_READERS: dict[str, Any] = {
    "checkpoints/*/*/*/*.safetensors": _weights,
    "scores/*.json": _record,
    "validation/*.json": _record,
    "warnings.json": _record,
    "summary.json": _record,
    "predictions/*.parquet": _rows,
    "replay/*.parquet": _rows,
    "guards/*.safetensors": _weights,
    "steps/*.parquet": _steps,
    "teachers/checkpoints/*/*/*/*.safetensors": _weights,
}


def _repeated(run: Path) -> list[str]:
    """Return a line for each step of a student that is on record more than once."""
    count: Counter[tuple[int, int, int]] = Counter()
    for path in run.glob("steps/*.parquet"):
        for row in pq.read_table(path, columns=["stage", "step", "student"]).to_pylist():
            count[row["stage"], row["step"], row["student"]] += 1
    return [f"stage {s}, step {n}, student {k}: {times} times" for (s, n, k), times in count.items() if times > 1]
