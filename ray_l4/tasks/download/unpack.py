"""Extraction of single files from an archive; an archive with any path or link that leads outside is refused."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast

from ray_l4.errors import DataError, nearest
from ray_l4.store.atomic import write_file

Open = Callable[[str], IO[bytes]]


class UnsafeArchiveError(DataError):
    """An archive with a path or link that leads outside the folder it is unpacked to."""


def extract(archive: Path, members: Mapping[str, Path]) -> list[Path]:
    """Extract files from a zip or a (compressed) tar archive, each written atomically.

    Args:
        members: by name in the archive, the path to write to.

    Returns:
        The paths written.

    Raises:
        UnsafeArchiveError: any member of the archive has an absolute path or one with ``..``, links to the outside, or
            is a device.
        DataError: a member is missing or not a regular file, or the archive is damaged or of another kind.
    """
    try:
        with _opened(archive) as (names, open_member):
            for member in members:
                if member not in names:
                    raise DataError(
                        f"{archive}: contains no file {member!r}. {nearest(member, names, 'The archive is empty.')}"
                    )
            for member, path in members.items():
                with open_member(member) as source:
                    write_file(path, lambda beside, source=source: _write(source, beside))  # type: ignore[misc]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); remove it and download it again.") from error
    return list(members.values())


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[str], Open]]:
    """Check every member of an archive; yield the names of its regular files and a function that opens one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield [info.filename for info in packed.infolist() if _is_safe_file(archive, info)], packed.open
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed:
            files = {info.name: info for info in packed if _is_safe_member(archive, info)}
            yield (
                list(files),
                lambda name: cast(IO[bytes], packed.extractfile(files[name])),
            )  # None only if not a regular file
    else:
        raise DataError(f"{archive}: neither a tar nor a zip archive; remove it and download it again.")


def _is_safe_file(archive: Path, info: zipfile.ZipInfo) -> bool:
    _check_path(archive, info.filename)
    if stat.S_ISLNK(info.external_attr >> 16):  # zipfile does not check links, and no published archive has one
        raise UnsafeArchiveError(f"{archive}: {info.filename!r} is a link. Nothing was unpacked.")
    return not info.is_dir()


def _is_safe_member(archive: Path, info: tarfile.TarInfo) -> bool:
    _check_path(archive, info.name)
    try:
        tarfile.data_filter(info, os.fspath(archive.parent))
    except tarfile.FilterError as error:
        raise UnsafeArchiveError(f"{archive}: {error}. Nothing was unpacked.") from error
    return info.isfile()


def _check_path(archive: Path, name: str) -> None:
    windows = PureWindowsPath(name)  # understands both kinds of slashes, and drives
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise UnsafeArchiveError(
            f"{archive}: {name!r} would be written outside the target folder. Nothing was unpacked."
        )


def _write(source: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)
