"""The table of published files (``upstream.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

ORIGIN = "https://raw.githubusercontent.com"
"""The server; an address is ORIGIN/REPOSITORY/COMMIT/PATH."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a public repository, at a fixed commit."""

    task: str
    repository: str
    commit: str
    path: str
    checksum: str
    """``sha256:`` or ``git:`` and hexadecimal digits (``checksum``)."""
    place: str = ""
    """Where it goes in the raw folder; empty for an archive."""
    members: Mapping[str, str] = field(default_factory=dict)
    """Of an archive: the names in it that are wanted, and where they go in the raw folder."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    def url(self, origin: str = ORIGIN) -> str:
        """Its address on the server ``origin``."""
        return f"{origin.rstrip('/')}/{self.repository}/{self.commit}/{self.path}"


@cache
def all_files() -> tuple[RemoteFile, ...]:
    """The whole table."""
    table = tomllib.loads(files(__package__).joinpath("upstream.toml").read_text(encoding="utf-8"))
    return tuple(
        RemoteFile(
            source["task"],
            source["repository"],
            source["commit"],
            file["path"],
            file["checksum"],
            file.get("place", ""),
            dict(file.get("members", ())),
        )
        for source in table["sources"]
        for file in source["files"]
    )


def remote_files(task: str) -> list[RemoteFile]:
    """The files of one task; none for a task that needs no raw files."""
    return [file for file in all_files() if file.task == task]
