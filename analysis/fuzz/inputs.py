"""What an input is: a command line and the files that it reads. Commands that read settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hypothesis import strategies as st

from analysis.fuzz.material import EXPERIMENT, PROFILE
from analysis.fuzz.mutations import Content

HERE = "@HERE@"
"""Stands for the folder of the input in its command line."""


@dataclass(frozen=True)
class Input:
    """A command line and the files that it reads."""

    arguments: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    """Path relative to the input's folder -> what is there."""
    base: Path | None = None
    """Run directory of which the input's folder has a copy in ``run``."""
    stdin: bytes = b""


@dataclass(frozen=True)
class Kind:
    """A kind of inputs."""

    name: str
    inputs: Callable[[Path], st.SearchStrategy[Input]]
    """Returns a strategy for the inputs, given the folder of the material."""
    codes: frozenset[int]
    """Exit codes that they may end with."""
    share: int
    """Number of inputs in proportion to other kinds."""


DRY_RUN = ("run", f"{HERE}/experiment.yaml", "--dry-run", "--cluster", f"{HERE}/profile.yaml")
PLAN = ("plan", f"{HERE}/experiment.yaml", "--cluster", f"{HERE}/profile.yaml", "--tokens", "16", "--answer", "4")
SWEEP = (
    "sweep",
    f"{HERE}/experiment.yaml",
    "--dry-run",
    "--cluster",
    f"{HERE}/profile.yaml",
    "--out",
    f"{HERE}/sweep",
)
SETTINGS = {"experiment.yaml": yaml.safe_dump(EXPERIMENT).encode(), "profile.yaml": yaml.safe_dump(PROFILE).encode()}


def argument(text: str) -> str:
    """Return a text as the argument of a process has it: without NUL, and bytes that are not UTF-8 escaped."""
    return os.fsdecode(text.replace("\0", "").encode("utf-8", errors="surrogatepass"))[:120_000]
