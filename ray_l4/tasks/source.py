"""The request to a reader of raw data: which split of which task, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray_l4.config.experiment import DataConfig
from ray_l4.config.paths import DATA_VARIABLE, raw_from_environment
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.tasks.rows import Split

_USUAL_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
"""Names that the splits of own data have if the task gives none."""


@dataclass(frozen=True)
class Source:
    """One split of one task, to be read."""

    task: TaskConfig
    split: Split
    data: DataConfig

    @property
    def wanted(self) -> int | Literal["paper", "all"]:
        """Number of examples the stream asks for; a dev split is always read whole."""
        return {"train": self.task.train, "test": self.task.test}.get(self.split, "all")

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names under which files of own data have the split: the one that the task gives, or else the usual ones."""
        given = getattr(self.task.splits, self.split)
        return (given,) if given is not None else _USUAL_NAMES[self.split]

    @property
    def raw(self) -> Path:
        """Folder of the raw data sets.

        Raises:
            ConfigError: neither ``data.raw`` nor the environment variable is set.
        """
        if self.data.raw is not None:
            return self.data.raw
        if raw := raw_from_environment():
            return raw
        raise ConfigError(
            f"Task {self.task.name!r} is read from raw files, but neither data.raw nor the environment variable "
            f"{DATA_VARIABLE} is set. Set one, or use the embedded tasks mini.woz, mini.sql, mini.rest."
        )

    @property
    def folder(self) -> Path:
        """Folder of a custom task (``TaskConfig.path``), or of converted files (``DataConfig.converted``).

        Raises:
            ConfigError: neither is set.
        """
        if self.task.path is None and self.data.converted is not None:
            return self.data.converted
        if self.task.path is None:
            raise ConfigError(f"Task {self.task.name!r} has no path; set it to the folder of its files.")
        return self.task.path

    def __str__(self) -> str:
        return f"{self.task.name} ({self.split})"
