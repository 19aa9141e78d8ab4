"""The table of published files (``upstream.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

ORIGIN = "https://raw.githubusercontent.com"
"""The server. An address is ORIGIN/REPOSITORY/COMMIT/PATH."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public repository at a fixed commit."""

    task: str
    repository: str
    commit: str
    path: str
    checksum: str
    """``sha256:`` or ``git:`` and hexadecimal digits (see the module ``checksum``)."""
    destination: str = ""
    """Path in the raw folder; empty for an archive."""
    members: Mapping[str, str] = field(default_factory=dict)
    """For an archive: names of the members to extract, and their paths in the raw folder."""

    @property
    def name(self) -> str:
        """The last component of the path."""
        return PurePosixPath(self.path).name

    def url(self, origin: str = ORIGIN) -> str:
        """Return the file's address on the server ``origin``."""
        return f"{origin.rstrip('/')}/{self.repository}/{self.commit}/{self.path}"


@cache
def all_files() -> tuple[RemoteFile, ...]:
    """Return the whole table."""
    table = tomllib.loads(files(__package__).joinpath("upstream.toml").read_text(encoding="utf-8"))
    return tuple(
        RemoteFile(
            source["task"],
            source["repository"],
            source["commit"],
            file["path"],
            file["checksum"],
            file.get("destination", ""),
            dict(file.get("members", ())),
        )
        for source in table["sources"]
        for file in source["files"]
    )


def remote_files(task: str) -> list[RemoteFile]:
    """Return the files of one task; an empty list for a task that needs no raw files."""
    return [file for file in all_files() if file.task == task]
