"""A full disk, recognised in whatever error it caused, and named with the file that could not be written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_l4.errors import RunDirectoryError

REMEDY = (
    "Free some space, or use another disk (--run-dir). What was written before is whole; a run goes on with: "
    "ray-l4 resume RUN_DIR"
)

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")
"""What libraries that do not raise OSError write in their errors."""

_MIB = 1 << 20


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether a full disk, or a used up quota, is what caused ``error``."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return True
        if any(text in str(error).lower() for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk_message(path: Path | str | None, *, is_here: bool = True) -> str:
    """Return what to tell the user if ``path`` could not be written because its disk is full.

    ``is_here``: whether that was on this machine, whose free space can be named.
    """
    where = "a file" if path is None else str(path)
    return f"{where}: cannot be written, because the disk is full{_free_space(path) if is_here else ''}. {REMEDY}"


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Within this context, raise RunDirectoryError if ``path`` cannot be written because its disk is full."""
    try:
        yield
    except RunDirectoryError:
        raise
    except Exception as error:
        if is_full_disk(error):
            raise RunDirectoryError(full_disk_message(path)) from error
        raise


def _free_space(path: Path | str | None) -> str:
    folder = next((parent for parent in Path(path).absolute().parents if parent.exists()), None) if path else None
    if folder is None:
        return ""
    disk = shutil.disk_usage(folder)
    return f" ({disk.free // _MIB} of {disk.total // _MIB} MiB are free)"
