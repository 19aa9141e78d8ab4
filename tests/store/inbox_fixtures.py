"""A run with an inbox, and a process that is killed at the n-th operation on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.store.begun_with import recorded
from ray_l4.store.extension import finish_extension, record_extension
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.record import Assignment
from ray_l4.store.run_directory import RunDirectory

KNOWN = "mini.woz"
OPERATIONS = ("fsync", "replace", "mkdir", "unlink", "rmdir")


def new_run(folder: Path) -> RunDirectory:
    """A run on one task whose stages are recorded in ``config.yaml`` alone."""
    experiment = ExperimentConfig.model_validate(
        {"method": "lamol", "stream": [KNOWN], "model": {"from_scratch": {}}, "seed": 7}
    )
    return RunDirectory.create(folder, experiment, ClusterConfig(), {"command": "test", **recorded(experiment)})


def extend(run: RunDirectory, given: Sequence[Assignment]) -> None:
    """Extend a run by the stages of assignments, as the command does before it learns them."""
    finish_extension(run)
    experiment = run.experiment()
    stages = [TaskConfig(name=each.task, path=each.folder(run.path), train="all", test="all") for each in given]
    known = experiment.tasks
    stages = [each if each.name in known else each.model_copy(update={"metric": "em"}) for each in stages]
    record_extension(run, experiment.model_copy(update={"stream": [*experiment.stream, *stages]}), {})


def example(number: int, answer: str = "yes") -> Example:
    """An example that differs from those with other numbers."""
    return Example(f"context {number}", "right?", (answer,))


class KilledError(BaseException):
    """The process was killed. Nothing that runs afterwards changes the disk."""


@contextmanager
def killed_at(operation: int) -> Iterator[None]:
    """Within this context, raise KilledError instead of the n-th operation on the disk, and of all after it."""
    count = 0

    def counted(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > operation:
                raise KilledError
            return None if name == "fsync" else real(*args, **named)

        return call

    with patch.multiple(os, **{name: counted(getattr(os, name), name) for name in OPERATIONS}):
        try:
            yield
        except KilledError:
            assert count > operation
