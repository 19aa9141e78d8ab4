"""Fixtures that write small data files, and the folder of the real ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.tasks.rows import BadRecords

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write text, bytes, or anything else as JSON to a path under ``tmp_path``; ``.gz`` is compressed."""

    def writer(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        data = content.encode("utf-8") if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return writer


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Raw data under ``tmp_path``; no bad record is tolerated."""
    return DataConfig(raw=tmp_path, max_bad_fraction=0.0)


@pytest.fixture
def lenient(tmp_path: Path) -> DataConfig:
    """Raw data under ``tmp_path``; half of the records may be bad."""
    return DataConfig(raw=tmp_path, max_bad_fraction=0.5)


@pytest.fixture
def bad() -> BadRecords:
    """A counter that tolerates any number of bad records."""
    return BadRecords("some data", 1.0)


@pytest.fixture(scope="session")
def real(shared_data: Path) -> DataConfig:
    """The real raw data."""
    return DataConfig(raw=shared_data / "raw")


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., TaskConfig]:
    """Function that returns a custom task in ``tmp_path/own``, with the settings that it is given."""

    def make(**settings: Any) -> TaskConfig:
        return TaskConfig(name="mine", path=tmp_path / "own", metric="em", **settings)

    return make
