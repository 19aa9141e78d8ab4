"""A full disk, recognised in whatever error it caused, and named with the file that could not be written.

A limit on the size of files (``ulimit -f``, or that of a file system) is recognised as well.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

REMEDY = "What was written before is whole; a run goes on with: ray-l4 resume RUN_DIR"

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOO_LARGE = ("file too large", "os error 27")
_TEXTS = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122", *_TOO_LARGE)
"""What libraries that do not raise OSError write in their errors."""

_MIB = 1 << 20


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether a full disk, or a used up quota, is what caused ``error``."""
    return any(_is_one(each, _NUMBERS, _TEXTS) for each in _causes(error))


def full_disk_message(path: Path | str | None, error: BaseException, *, is_here: bool = True) -> str:
    """Return what to tell the user if ``path`` could not be written because of ``error``, that of a full disk.

    ``is_here``: whether that was on this machine, whose free space can be named.
    """
    where = "a file" if path is None else str(path)
    if any(_is_one(each, (errno.EFBIG,), _TOO_LARGE) for each in _causes(error)):
        why = "because it would be larger than files may be here. Raise the limit (ulimit -f; that of the file system)"
    else:
        why = f"because the disk is full{_free_space(path) if is_here else ''}. Free some space"
    return f"{where}: cannot be written, {why}, or use another disk (--run-dir). {REMEDY}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, then what caused it, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_one(error: BaseException, numbers: Collection[int], texts: Collection[str]) -> bool:
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(text in str(error).lower() for text in texts)


def _free_space(path: Path | str | None) -> str:
    folder = next((parent for parent in Path(path).absolute().parents if parent.exists()), None) if path else None
    if folder is None:
        return ""
    disk = shutil.disk_usage(folder)
    return f" ({disk.free // _MIB} of {disk.total // _MIB} MiB are free)"
