"""What a reader of raw data is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray_l4.config.experiment import DataConfig, TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.tasks.rows import Split

ENVIRONMENT = "RAY_L4_DATA"
"""Names the folder that holds ``raw/`` when the experiment does not."""


@dataclass(frozen=True)
class Source:
    """One split of one task."""

    task: TaskConfig
    split: Split
    data: DataConfig

    @property
    def wanted(self) -> int | Literal["paper", "all"]:
        """How many examples the stream asks for; a dev split is always taken whole."""
        return {"train": self.task.train, "test": self.task.test}.get(self.split, "all")

    @property
    def raw(self) -> Path:
        """The folder of the raw data sets.

        Raises:
            ConfigError: neither ``data.raw`` nor the environment says where it is.
        """
        if self.data.raw is not None:
            return self.data.raw
        if folder := os.environ.get(ENVIRONMENT):
            return Path(folder) / "raw"
        raise ConfigError(
            f"Task {self.task.name!r} is read from raw files, but neither data.raw nor the environment variable "
            f"{ENVIRONMENT} says where they are. Set one, or use the embedded tasks mini.woz, mini.sql, mini.rest."
        )

    @property
    def folder(self) -> Path:
        """The folder of one's own data (``TaskConfig.path``), or that of converted files (``DataConfig.converted``)."""
        if self.task.path is None and self.data.converted is not None:
            return self.data.converted
        if self.task.path is None:
            raise ConfigError(f"Task {self.task.name!r} has no path; set it to the folder of its files.")
        return self.task.path

    def __str__(self) -> str:
        return f"{self.task.name} ({self.split})"
