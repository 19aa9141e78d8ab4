"""The ledger of benchmarks: a file of JSON lines, each with the machine and the commit that it was measured on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ray_l4.bench.record import load, machine
from ray_l4.errors import ConfigError

_CPU_INFO = Path("/proc/cpuinfo")


def provenance() -> dict[str, Any]:
    """Return on what a measurement was made: machine, processor, load, commit, version of PyTorch, time."""
    return {
        "machine": machine(),
        "processor": _processor(),
        "load": load(),
        "commit": _commit(),
        "torch": torch.__version__,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row. Raises ConfigError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise ConfigError(
            f"--ledger {path}: {error.strerror}; choose a file in a folder that can be written"
        ) from error


def _processor() -> str | None:
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _commit() -> str | None:
    """Return the commit of the code, with a ``+`` if files were changed since; None if it is not in a repository."""
    folder = Path(__file__).parent
    found = [_git(folder, *words) for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno"))]
    if found[0] is None:
        return None
    return found[0] + ("+" if found[1] else "")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
