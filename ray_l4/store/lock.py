"""The lock of a folder into which one process at a time may write.

It is ``flock`` of a file, such as ``.lock``, which ends with its process, however that ends. Some network file systems
do not support locks. There, a file ``.lock.held`` is the lock: it is created by one process alone, and names it. One
that a process of this machine left is taken over; one of another machine, which may still be at work, is not.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ray_l4.errors import RunDirectoryError
from ray_l4.store.unwritable import naming_unwritable

LOCK = ".lock"
_NOT_SERVED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_NAP = 0.1
"""Seconds between two attempts."""
_HOLDER = re.compile(r"process (\d+) on (.+)")


@contextmanager
def locked(folder: Path, name: str = LOCK, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock of ``folder``: the file ``name``, or where locks are not supported, ``NAME.held``.

    ``patience``: seconds to wait for another process. Raises RunDirectoryError if one holds it for longer, or if the
    file cannot be written.
    """
    with _opened(folder / name) as file:
        try:
            _within(patience, lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), BlockingIOError)
        except BlockingIOError:
            file.seek(0)
            raise _in_use(folder, file.read()) from None
        except OSError as error:
            if error.errno not in _NOT_SERVED:
                raise RunDirectoryError(
                    f"{folder / name}: cannot be locked ({error.strerror}), so another process could write there as "
                    "well. Use a folder on another file system (--run-dir)."
                ) from error
            with _held(folder, f"{name}.held", patience):
                yield
            return
        with naming_unwritable(folder / name):
            file.truncate(0)
            file.write(_own())
            file.flush()
        yield


def is_locked(folder: Path, name: str = LOCK) -> bool:
    """Return whether a process holds the lock ``name`` of ``folder``, as far as this machine can tell.

    The lock is not tried, so whoever wants it at this moment gets it.
    """
    held = folder / f"{name}.held"
    try:
        if held.exists():
            return not _has_ended(held.read_text(encoding="utf-8"))
        return (folder / name).stat().st_ino in _locked_files((folder / name).stat().st_dev)
    except OSError:  # no such file, or a system that does not list its locks
        return False


def _locked_files(device: int) -> set[int]:
    """Return the inodes of all files of a device that are locked with ``flock``. Raises OSError if none are listed."""
    own = f"{os.major(device):02x}:{os.minor(device):02x}"
    found = set()
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        place, _, inode = fields[-3].rpartition(":")
        # Layered file systems have no device of their own, and list that of the layer below.
        if "FLOCK" in fields and (place == own or not os.major(device)):
            found.add(int(inode))
    return found


@contextmanager
def _held(folder: Path, name: str, patience: float) -> Iterator[None]:
    """Hold the lock by a file that no other process can create meanwhile."""
    path = folder / name
    with naming_unwritable(path):
        try:
            _within(patience, lambda: _take(folder, path), FileExistsError)
        except FileExistsError:
            holder = path.read_text(encoding="utf-8")
            raise _in_use(folder, holder, f" If that process has ended, remove {path}.") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(folder: Path, path: Path) -> None:
    with _one_of_this_machine(folder):
        if path.exists() and _has_ended(path.read_text(encoding="utf-8")):
            path.unlink()
        with path.open("x", encoding="utf-8") as file:
            file.write(_own())


def _within(patience: float, attempt: Callable[[], None], refusal: type[OSError]) -> None:
    """Make an attempt until it is not refused; after ``patience`` seconds, the refusal is raised."""
    deadline = time.monotonic() + patience
    while True:
        try:
            attempt()
            return
        except refusal:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_NAP)


def _has_ended(holder: str) -> bool:
    """Return whether a lock was left by a process of this machine that is no more."""
    found = _HOLDER.fullmatch(holder.strip())
    if found is None or found[2] != platform.node():
        return False
    try:
        state = Path(f"/proc/{found[1]}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # it has ended, but its parent has not asked how


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
