"""The command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = REPOSITORY / "launch" / "experiments" / "quickstart.yaml"
IN_PROCESS = REPOSITORY / "cluster_configs" / "in_process.yaml"
LIMIT = 240.0

SMALL = {
    "name": "small",
    "method": "l4",
    "stream": [{"name": "mini.woz", "train": 24, "test": 6}, {"name": "mini.rest", "train": 24, "test": 6}],
    "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400}},
    "training": {"epochs": 1, "batch_size": 8},
    "optim": {"variant": "torch", "lr": 2.0e-3},
    "replay": {"ratio": 0.25, "max_length": 30},
    "evaluation": {"max_new_tokens": 6},
}


def write_experiment(folder: Path, **changes: object) -> Path:
    """An experiment file that runs in seconds."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    return path


def command(*arguments: object) -> list[str]:
    """The command line with these arguments."""
    return [sys.executable, "-m", "ray_l4.cli.main", *map(str, arguments)]


def ray_l4(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"},
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert that a command failed as a user's mistake should: one clear error, its code, no traceback."""
    assert result.returncode == code, result.stderr
    assert result.stderr.count("error:") == 1, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for word in words:
        assert word in result.stderr, f"{word!r} is not in: {result.stderr}"
