"""What an installation has beside the modules: every file that the package reads must be named in pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def test_every_file_of_the_package_is_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    named: dict[str, list[str]] = project["tool"]["setuptools"]["package-data"]
    installed = {
        path
        for package, patterns in named.items()
        for pattern in patterns
        for path in REPOSITORY.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for path in (REPOSITORY / "ray_l4").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert sorted(path for path in files - installed if path.suffix != ".py") == []
