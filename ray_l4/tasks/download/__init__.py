"""The raw files of a task, fetched from where they are published.

``upstream.toml`` lists the addresses and checksums, ``transfer`` brings one file, ``unpack`` takes an archive apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ray_l4.tasks.download.checksum import matches
from ray_l4.tasks.download.transfer import DownloadError, fetch
from ray_l4.tasks.download.unpack import extract
from ray_l4.tasks.download.upstream import ORIGIN, RemoteFile, remote_files
from ray_l4.tasks.files import holds, present

log = logging.getLogger(__name__)

Report = Callable[[str, int, int | None], None]
"""Told a file's name, the bytes that are here, and how many there will be (None when the server does not say)."""


def download(task: str, raw: Path, report: Report, origin: str = ORIGIN) -> list[Path]:
    """Fetch what the built-in ``task`` lacks in the folder ``raw``; returns the new files.

    ``origin`` is the server, or a mirror of it. A file that is there is left alone; so are those of an archive, which
    are known by their names alone, since only whole ones get these names.

    Raises:
        DownloadError: the server refuses or does not answer, or what it sends is not what was published.
        DataError: a file of that name is there but has other contents, or an archive is unsafe or incomplete.
    """
    return [path for file in remote_files(task) for path in _bring(file, raw, report, origin)]


def _bring(file: RemoteFile, raw: Path, report: Report, origin: str) -> list[Path]:
    def tell(done: int, total: int | None) -> None:
        report(file.name, done, total)

    if file.members:
        missing = {member: place for member, place in file.members.items() if not _holds(raw / place)}
        if not missing:
            return []
        archive = raw / f".{file.commit[:12]}.{file.name}"
        if not archive.exists():  # a run that ended before it was unpacked has left it, whole
            fetch(file.url(origin), archive, file.checksum, tell)
        written = extract(archive, {member: raw / place for member, place in missing.items()})
        archive.unlink()
        return written
    place = raw / file.place
    if here := present(place.parent, place.name):
        _check(here, file)
        return []
    fetch(file.url(origin), place, file.checksum, tell)
    return [place]


def _holds(place: Path) -> bool:
    return holds(place.parent, place.name)


def _check(path: Path, file: RemoteFile) -> None:
    """A file that is there may be a damaged one, or another version: using it in silence would mislead."""
    if not matches(path, file.checksum):
        raise DownloadError(
            f"{path} is there, but it is not the published file (expected {file.checksum}). Move it away to download "
            "that one, or leave out --download to use yours."
        )
