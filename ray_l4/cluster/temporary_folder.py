"""The folder in which a local Ray cluster keeps its sockets, logs and spilled objects."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from ray_l4.errors import ClusterError
from ray_l4.store.names import PRIVATE

_OTHERS = 0o077

_LONGEST_SOCKET = 107
"""Bytes that the path of a Unix socket may have."""

_LEAST_FREE = 50 << 20
"""Bytes that must be free for Ray's logs and sockets; without them it waits for a minute and says nothing."""

_BELOW = "/ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray puts below its temporary folder, with the longest process id."""


def temporary_folder() -> tuple[Path, str | None]:
    """Return the folder below which Ray has its own, and the environment variable that names it, if any.

    By default it is a folder of this user alone: Ray lets everyone read and write in its own, again with every worker.
    """
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if variable in os.environ:
            return Path(os.environ[variable]), variable
    return Path("/tmp") / f"ray-l4-{os.getuid()}", None


def check_temporary_folder() -> None:
    """Raise ClusterError if the paths of Ray's sockets would be too long, or if the folder cannot be written."""
    folder, variable = temporary_folder()
    name = variable or "Ray's temporary folder"
    most = _LONGEST_SOCKET - len(_BELOW)
    if len(os.fsencode(folder.absolute())) > most:
        raise ClusterError(
            f"{name}: the path {folder} is too long for Ray's sockets, which are in a folder below it: at most {most} "
            "bytes. Name a shorter one: RAY_TMPDIR=/tmp ray-l4 run ..."
        )
    try:
        if variable is None:
            folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            refuse_shared(folder)
        (folder / "ray").mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ClusterError(
            f"{name}: Ray cannot create a folder in {folder} ({error.strerror}). Free some space there, or name "
            "another folder: RAY_TMPDIR=FOLDER ray-l4 run ..."
        ) from error
    if free < _LEAST_FREE:
        raise ClusterError(
            f"{name}: {free >> 20} MiB are free, and Ray needs {_LEAST_FREE >> 20}: {full_temporary_folder()}."
        )


def refuse_shared(folder: Path) -> None:
    """Raise ClusterError if others can enter the folder, or if it is another user's or a link."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & _OTHERS:
        raise ClusterError(
            f"Ray's temporary folder: {folder} is not a folder of yours with mode 700, so others could change what Ray "
            f"keeps there. If it is yours: chmod 700 {folder}. If not, name another: RAY_TMPDIR=FOLDER ray-l4 run ..."
        )


def full_temporary_folder() -> str:
    """Return what to tell the user if the disk of Ray's temporary folder is full."""
    folder, _ = temporary_folder()
    return (
        f"the disk of Ray's temporary folder {folder / 'ray'} is full: it holds logs, and what no longer fits into "
        "memory. Free some space there (folders session_* of clusters that have ended can go), name a folder on "
        "another disk (RAY_TMPDIR=FOLDER), or enlarge ray.object_store_memory in the profile"
    )
