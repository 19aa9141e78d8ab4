"""Storage that takes no file, because it is full, read-only, forbidden or failing: named with the file and a remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_l4.errors import RunDirectoryError, UnwritableError
from ray_l4.store.full_disk import REMEDY, full_disk_message, is_full_disk

_FORBIDDEN = "Give this user the right to write there"
_FAILING = "Its storage fails: see that it is mounted and answers (the system's log says more)"
_IN_THE_WAY = "Remove what is in its place"
_ADVICE = {
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: "Its storage is read-only: mount it for writing",
    **dict.fromkeys((errno.EIO, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.ENOENT), _FAILING),
    **dict.fromkeys((errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN), _FAILING),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST), _IN_THE_WAY),
}
"""Error number -> what to do."""


def unwritable_message(path: Path, error: BaseException, *, is_new: bool = False) -> str | None:
    """Return what to tell the user if ``error`` is one of storage that did not take the file at ``path``.

    ``is_new``: whether it is a run directory in which there is nothing yet.
    """
    if is_full_disk(error):
        return full_disk_message(path, error)
    if not isinstance(error, OSError) or error.errno not in _ADVICE or not _concerns(path, error):
        return None
    advice = _ADVICE[error.errno]
    what, rest = ("created", "") if is_new else ("written", f" {REMEDY}")
    return f"{path}: cannot be {what} ({error.strerror}). {advice}, or use another folder (--run-dir).{rest}"


@contextmanager
def naming_unwritable(path: Path) -> Iterator[None]:
    """Within this context, raise UnwritableError if the storage of ``path`` refuses to take it."""
    try:
        yield
    except RunDirectoryError:
        raise
    except Exception as error:
        message = unwritable_message(path, error)
        if message is not None:
            raise UnwritableError(message) from error
        raise


def _concerns(path: Path, error: OSError) -> bool:
    """Return whether an error is one of ``path``, of what is beside or above it, and not of a file that is read."""
    named = error.filename
    if not isinstance(named, str):
        return True
    found = Path(named)
    return found.is_relative_to(path.parent) or path.is_relative_to(found)
