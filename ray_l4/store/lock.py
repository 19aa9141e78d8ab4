"""The lock of a folder into which one process at a time may write.

It is ``flock`` of the file ``.lock``, which ends with its process, however that ends. Some network file systems do not
serve locks. There, a file ``.lock.held`` is the lock: it is created by one process alone, and names it. One that a
process of this machine left is taken over; one of another machine, which may still be at work, is not.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ray_l4.errors import RunDirectoryError
from ray_l4.store.unwritable import naming_unwritable

LOCK, HELD = ".lock", ".lock.held"
_NOT_SERVED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_HOLDER = re.compile(r"process (\d+) on (.+)")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``. Raises RunDirectoryError if another process does, or if it cannot be written."""
    with _opened(folder / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _in_use(folder, file.read()) from None
        except OSError as error:
            if error.errno not in _NOT_SERVED:
                raise RunDirectoryError(
                    f"{folder / LOCK}: cannot be locked ({error.strerror}), so another process could write there as "
                    "well. Use a folder on another file system (--run-dir)."
                ) from error
            with _held(folder):
                yield
            return
        with naming_unwritable(folder / LOCK):
            file.truncate(0)
            file.write(_own())
            file.flush()
        yield


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock by a file that no other process can create meanwhile."""
    path = folder / HELD
    with naming_unwritable(path), _one_of_this_machine(folder):
        if path.exists() and _has_ended(path.read_text(encoding="utf-8")):
            path.unlink()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(_own())
        except FileExistsError:
            holder = path.read_text(encoding="utf-8")
            raise _in_use(folder, holder, f" If that process has ended, remove {path}.") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _has_ended(holder: str) -> bool:
    """Return whether a lock was left by a process of this machine that is no more."""
    found = _HOLDER.fullmatch(holder.strip())
    if found is None or found[2] != platform.node():
        return False
    return not Path(f"/proc/{found[1]}").exists()


@contextmanager
def _one_of_this_machine(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine and user is within this context for the same folder.

    Otherwise two processes could both find that the lock was left, and the second could remove that of the first.
    """
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"ray-l4-{os.getuid()}-{name}.lock"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _own() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _in_use(folder: Path, holder: str, advice: str = "") -> RunDirectoryError:
    holder = holder.strip() or "another process"
    return RunDirectoryError(f"{folder}: in use by {holder}. Wait until it ends, or stop it first.{advice}")


def _opened(path: Path) -> TextIO:
    with naming_unwritable(path):
        return path.open("a+", encoding="utf-8")
