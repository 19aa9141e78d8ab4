"""Scaling of a protocol: fewer examples and epochs, in the proportions of the original."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.protocol import Settings
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.tasks.registry import TASKS
from ray_l4.tasks.rows import Split

MIN_EXAMPLES = 20
"""Smallest scaled size of a task: fewer examples say nothing about a method. A smaller task keeps its size."""

_EPOCHS = ("training.epochs", "teachers.epochs")
_EPOCHS_OF_A_STAGE = re.compile(r"stream\.\d+\.settings\.training\.epochs")
_SIZE = re.compile(r"stream\.\d+\.(train|test)")
_SPLITS: tuple[Split, ...] = ("train", "test")


def check_scale(scale: float) -> None:
    """Raise ConfigError unless 0 < ``scale`` <= 1."""
    if not 0 < scale <= 1:
        raise ConfigError(f"--scale {scale:g}: expected a number above 0 and at most 1 (0.1 for a tenth)")


def scaled(experiment: ExperimentConfig, scale: float) -> Settings:
    """Return the settings of an experiment that change at ``scale``: epochs, and the sizes of tasks where known.

    ``paper`` counts as the number of examples in the papers; ``all`` stays ``all``.
    """
    sizes = {f"stream.{i}.{split}": size for i, task in enumerate(experiment.stream) for split, size in _sizes(task)}
    epochs = dict(zip(_EPOCHS, (experiment.training.epochs, experiment.teachers.epochs), strict=True))
    of_stages = [item.settings.training.epochs for item in experiment.stream]
    epochs |= {f"stream.{i}.settings.training.epochs": count for i, count in enumerate(of_stages)}
    return scaled_settings(sizes | {key: count for key, count in epochs.items() if count is not None}, scale)


def scaled_settings(settings: Settings, scale: float) -> dict[str, object]:
    """Return the same settings with epochs and sizes at ``scale``."""
    return {key: _scaled(key, value, scale) for key, value in settings.items()}


def _scaled(key: str, value: object, scale: float) -> object:
    if not isinstance(value, int):
        return value
    count = math.floor(value * scale + 0.5)
    if key in _EPOCHS or _EPOCHS_OF_A_STAGE.fullmatch(key):
        return max(count, 1)
    return max(count, min(value, MIN_EXAMPLES)) if _SIZE.fullmatch(key) else value


def _sizes(task: TaskConfig) -> Iterator[tuple[str, int]]:
    for split in _SPLITS:
        size = getattr(task, split)
        if size == "paper" and task.name in TASKS:
            size = TASKS[task.name].paper_size(split)
        if isinstance(size, int):
            yield split, size
