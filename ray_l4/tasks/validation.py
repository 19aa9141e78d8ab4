"""Validation examples: held out of the training examples, a task's own dev split, or other files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import Splits, TaskConfig
from ray_l4.errors import ConfigError, DataError
from ray_l4.tasks.registry import DIALOGUE_METRIC, load, metric_of

if TYPE_CHECKING:
    import pyarrow as pa

SPLIT = "validation"
"""Names the examples that are held out, in the seed by which they are drawn."""


def check_validation(items: Sequence[TaskConfig], asked: float | str | Path | None, *, alone: bool) -> None:
    """Raise ConfigError if a path of ``evaluation.validation`` cannot hold the examples of these items of a stream.

    ``alone``: whether all items of the stream are of one task.
    """
    if not isinstance(asked, Path):
        return
    if not asked.exists():
        raise ConfigError(
            f"evaluation.validation: no file or folder {asked}. Give a share of the training examples (such as 0.1), "
            "dev, or a path."
        )
    for item in items:
        folder_of(item, asked, alone=alone)


def folder_of(task: TaskConfig, asked: Path, *, alone: bool) -> Path:
    """Return the folder, or the file, with the validation examples of a task.

    ``alone``: whether the task is the only one of its stream. Raises ConfigError if there is none.
    """
    if (asked / task.name).is_dir():
        return asked / task.name
    if alone:
        return asked
    raise ConfigError(
        f"evaluation.validation: no folder {asked / task.name}; with several tasks, {asked} has to hold a folder with "
        f"dev.* for each of them"
    )


def with_validation(
    task: TaskConfig, training: pa.Table, asked: float | str | Path, data: DataConfig, *, alone: bool
) -> tuple[pa.Table, pa.Table]:
    """Return the training examples that are left, and the validation examples of a task.

    ``training``: its training examples. ``asked``: ``evaluation.validation``. ``alone``: as for ``folder_of``.
    Raises DataError if the data is missing or too small to hold any out, ConfigError for a folder that is not there.
    """
    if isinstance(asked, float):
        return held_out(training, asked, data.seed, task)
    if isinstance(asked, Path):
        place = {"path": folder_of(task, asked, alone=alone), "dataset": None, "splits": Splits()}
        task = task.model_copy(update=place)
    return training, load(task, "dev", data)


def held_out(training: pa.Table, fraction: float, seed: int, task: TaskConfig) -> tuple[pa.Table, pa.Table]:
    """Divide the training examples of a task into those that are left and a ``fraction`` that is held out.

    Both keep the order of the file. Whole dialogues are drawn where the metric accumulates over their turns, so that at
    most one dialogue is in both. Raises DataError if there are fewer than two examples.
    """
    import pyarrow as pa

    from ray_l4.tasks.sampling import drawn

    total = training.num_rows
    if total < 2:
        raise DataError(
            f"evaluation.validation: task {task.name!r} has {total} training example, of which none can be held out; "
            "give it more, or give validation examples by a path."
        )
    count = min(max(1, round(fraction * total)), total - 1)
    rows = set(drawn(training, count, seed, task.name, SPLIT, metric_of(task) == DIALOGUE_METRIC).tolist())
    held = pa.array([row in rows for row in range(total)])
    return training.filter(pa.array([row not in rows for row in range(total)])), training.filter(held)
