"""Single files out of an archive, none of it if any part of the archive points outside its folder."""

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
    """An archive with a path or a link that leads outside the folder it is unpacked in."""


def extract(archive: Path, members: Mapping[str, Path]) -> list[Path]:
    """Write the members (by their names in the archive) to their places, each in one step; returns the places.

    Tar archives, plain or compressed, and zip.

    Raises:
        UnsafeArchiveError: some member's path is absolute, climbs with ``..``, or is a link to the outside or a device.
        DataError: a member is missing or no plain file, or the archive is damaged or of another kind.
    """
    try:
        with _opened(archive) as (names, open_member):
            for member in members:
                if member not in names:
                    raise DataError(f"{archive}: holds no file {member!r}. {nearest(member, names)}")
            for member, place in members.items():
                with open_member(member) as source:
                    write_file(place, lambda beside, source=source: _write(source, beside))  # type: ignore[misc]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); remove it and download it again.") from error
    return list(members.values())


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[str], Open]]:
    """The names of an archive's plain files, after all of it was checked, and how to read one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield [info.filename for info in packed.infolist() if _is_safe_file(archive, info)], packed.open
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed:
            files = {info.name: info for info in packed if _is_safe_member(archive, info)}
            yield list(files), lambda name: cast(IO[bytes], packed.extractfile(files[name]))  # None for no plain file
    else:
        raise DataError(f"{archive}: neither a tar nor a zip archive; remove it and download it again.")


def _is_safe_file(archive: Path, info: zipfile.ZipInfo) -> bool:
    _check_path(archive, info.filename)
    if stat.S_ISLNK(info.external_attr >> 16):  # none of the published archives has one; zip leaves them unchecked
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
        raise UnsafeArchiveError(f"{archive}: {name!r} would be written outside the folder. Nothing was unpacked.")


def _write(source: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)
