"""Questions with their right answers, from the embedded tasks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.tasks.registry import TASKS, load


@dataclass(frozen=True)
class Question:
    """A question about a context, and its right answer."""

    task: str
    """Name by which the service knows the task."""
    sample_id: str
    context: str
    question: str
    right: str


@dataclass(frozen=True)
class Lesson:
    """Examples of a task that are taught to a service."""

    task: str
    source: str
    """The embedded task that they are taken from."""
    count: int

    @classmethod
    def of(cls, text: str) -> Lesson:
        """Read ``TASK=COUNT`` or ``TASK=SOURCE:COUNT``. Raises argparse's error if it is neither."""
        task, _, rest = text.partition("=")
        source, _, count = rest.rpartition(":")
        if not task or not count.isdigit() or int(count) < 1 or (source or task) not in TASKS:
            raise argparse.ArgumentTypeError(f"expected TASK=COUNT or TASK=EMBEDDED_TASK:COUNT, not {text!r}")
        return cls(task, source or task, int(count))

    @property
    def metric(self) -> str:
        """The metric of the source."""
        return TASKS[self.source].metric


def questions_of(task: str, source: str, seed: int) -> list[Question]:
    """Return the test set of an embedded task, as questions about ``task``."""
    return [_question(task, row) for row in load(TaskConfig(name=source), "test", DataConfig(seed=seed)).to_pylist()]


def fresh(task: str, source: str, first: int, count: int, seed: int) -> list[Question]:
    """Return ``count`` training examples of an embedded task, from number ``first`` on.

    Those from the size of the run's training set on are new to it. Their ids are those of no test example. Raises
    ConfigError if the task is not embedded.
    """
    if TASKS[source].family != "embedded":
        raise ConfigError(f"{source}: not an embedded task")
    rows = load(TaskConfig(name=source, train=first + count), "train", DataConfig(seed=seed)).to_pylist()
    # Numbers of training and of test examples are alike, and tell no question from another.
    return [_question(task, row | {"sample_id": f"train-{row['sample_id']}"}) for row in rows[first:]]


def _question(task: str, row: Mapping[str, Any]) -> Question:
    return Question(task, row["sample_id"], row["context"], row["question"], row["answer"])
