"""A small run, and a learner that looks at it until something has happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ray_l4.config.experiment import LiveConfig
from ray_l4.live.learner import LiveLearner
from ray_l4.run import execute
from ray_l4.store.inbox.example import Example
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small

LIMIT = 120.0
PROFILE = small.cluster("in_process")
LIVE = LiveConfig.model_validate({"min_examples": 4, "max_forgetting": 100.0, "settings": {"training": {"epochs": 2}}})


def learned(folder: Path, method: str = "lamol") -> RunDirectory:
    """A finished run on one task, from which little can be forgotten."""
    config = small.quick(method, stream=[{"name": "mini.rest", "train": 16, "test": 4}])
    execute.run(config, PROFILE, folder, "ray-l4 run", Console(quiet=True))
    return RunDirectory.open(folder)


def examples(count: int, first: int = 0) -> list[Example]:
    """Different examples of one question."""
    return [
        Example(f"case {number}", "how is it ?", (f"right {number % 2}",), None, "test", "2026-01-01", "")
        for number in range(first, first + count)
    ]


def watch(learner: LiveLearner, until: Callable[[], bool]) -> None:
    """Look as the service does until ``until`` is true."""
    deadline = time.monotonic() + LIMIT
    while not until():
        assert time.monotonic() < deadline, "nothing has happened"
        learner.look()
        time.sleep(0.05)
