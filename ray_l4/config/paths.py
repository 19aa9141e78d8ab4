"""Paths as users write them: with ``~``, or by the environment variable that names the folder of the data sets."""

from __future__ import annotations

import os
from pathlib import Path

DATA_VARIABLE = "RAY_L4_DATA"
"""Environment variable that names the folder of ``raw/``, used if ``data.raw`` is not set."""


def expand_home(path: str | Path) -> Path:
    """Return ``path`` with a home directory in place of ``~`` or ``~user``; an unknown user is left, as in a shell."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def is_path(model: str) -> bool:
    """Return whether the name of a model can only be that of a folder: no name on the hub looks like this."""
    return model.startswith((".", "~", os.sep)) or model.endswith(os.sep) or model.count("/") > 1


def raw_from_environment() -> Path | None:
    """Return ``$RAY_L4_DATA/raw``, whether it exists or not; None if the variable is not set."""
    folder = os.environ.get(DATA_VARIABLE)
    return expand_home(folder) / "raw" if folder else None
