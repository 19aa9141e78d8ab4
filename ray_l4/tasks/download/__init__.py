"""Download of a task's raw files from where they were published.

``upstream.toml`` lists addresses and checksums, ``transfer`` fetches one file, ``unpack`` extracts from an archive.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ray_l4.tasks.download.checksum import matches
from ray_l4.tasks.download.transfer import DownloadError, fetch
from ray_l4.tasks.download.unpack import extract
from ray_l4.tasks.download.upstream import ORIGIN, RemoteFile, remote_files
from ray_l4.tasks.files import find_or_none, has_file

log = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes received so far and its size (None if the server does not give it)."""


def download(task: str, raw: Path, on_progress: OnProgress, origin: str = ORIGIN) -> list[Path]:
    """Fetch the files of the built-in ``task`` that are missing from the folder ``raw``. Returns the new files.

    Existing files stay as they are. Those that come from an archive are recognised by name alone: extraction is
    atomic, so a file with that name is complete.

    Args:
        origin: the server, or a mirror of it.

    Raises:
        DownloadError: the server refuses or does not answer, or sends something other than the published file.
        DataError: a file of that name exists with different contents, or an archive is unsafe or incomplete.
    """
    return [path for file in remote_files(task) for path in _fetch_missing(file, raw, on_progress, origin)]


def _fetch_missing(file: RemoteFile, raw: Path, on_progress: OnProgress, origin: str) -> list[Path]:
    def on_bytes(done: int, total: int | None) -> None:
        on_progress(file.name, done, total)

    if file.members:
        missing = {
            member: destination for member, destination in file.members.items() if not _is_there(raw / destination)
        }
        if not missing:
            return []
        archive = raw / f".{file.commit[:12]}.{file.name}"
        if not archive.exists():  # else a call that was interrupted before unpacking has left it, complete
            fetch(file.url(origin), archive, file.checksum, on_bytes)
        written = extract(archive, {member: raw / destination for member, destination in missing.items()})
        archive.unlink()
        return written
    destination = raw / file.destination
    if here := find_or_none(destination.parent, destination.name):
        _check(here, file)
        return []
    fetch(file.url(origin), destination, file.checksum, on_bytes)
    return [destination]


def _is_there(destination: Path) -> bool:
    return has_file(destination.parent, destination.name)


def _check(path: Path, file: RemoteFile) -> None:
    """Raise DownloadError if an existing file is damaged or another version: using it silently would mislead."""
    if not matches(path, file.checksum):
        raise DownloadError(
            f"{path} exists but is not the published file (expected {file.checksum}). Move it away to download the "
            "published one, or leave out --download to use yours."
        )
