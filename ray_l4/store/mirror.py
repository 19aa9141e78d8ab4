"""The mirror of a run directory: a copy that grows with it, from which the run can be resumed if its disk is lost.

The copy is in a folder of another disk or in an object store (``storage_path``). It has the files of the run directory
under the same names, and a list of their versions, ``.mirror.json``. Only one process at a time may write it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import yaml

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.redaction import redacted
from ray_l4.errors import ClusterError, RunDirectoryError
from ray_l4.store.atomic import write_folder
from ray_l4.store.names import make_private
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.store.storage import FAILURES, Storage, join_address, split_address, with_timeout

log = logging.getLogger("ray_l4.coordinator")

_Result = TypeVar("_Result")
Version: TypeAlias = tuple[int, int]
"""Size in bytes and modification time in ns of a local file, which tell whether the file has changed."""

MIRROR_NAME_KEY = "mirror"
"""Manifest key of the copy's name, which stays the same if the run directory is renamed."""

_VERSIONS_FILE = ".mirror.json"
_NOT_COPIED = re.compile(r"\.lock(\..*)?|\.mirror\.json|\..*\.(part|old|gone)")
"""Names of files and folders that are not part of the results."""

_WRITTEN_LAST = ("learned.json", "manifest.json", "state.json", "promoted.json", "summary.json", "config.yaml")
"""Files that refer to others, in the order in which they are written, after all others. They are read in the opposite
order. So whatever changes meanwhile, each of them in the copy is at least as new as those that are written after it."""

_CLOCK_RESOLUTION = 100_000_000
"""Nanoseconds within which a file can change again and keep its modification time."""

_CHECK_TIMEOUT = 60.0
"""Seconds within which a storage must answer at the start of a run."""

_STALL_TIMEOUT = 300.0
"""Seconds without any byte transferred after which the current push or pull fails."""


class Mirror:
    """The copy of one run directory."""

    def __init__(self, address: str, run_name: str, storage: Storage | None = None) -> None:
        """Use the folder ``run_name`` at ``address``, or ``storage`` if it is given."""
        self.name = run_name
        self.address = redacted(join_address(address, run_name))
        """Address of the copy's folder, without passwords."""
        self._location = (address, run_name)
        self._opened = storage
        self._cached_versions: dict[str, Version | None] | None = None
        self._push_lock = threading.Lock()

    @classmethod
    def at(cls, address: str) -> Mirror:
        """Return the copy whose folder has the given address."""
        return cls(*split_address(address))

    def check(self, run_path: Path, *, new: bool) -> None:
        """Check that the run at ``run_path`` can be copied here: write a test file, and look for other runs.

        Raises ConfigError or ClusterError if the storage cannot be used (within a minute), RunDirectoryError if it has
        a copy of another run, or of any run if this one is ``new``.
        """
        remedy = "Is it reachable and writable from here, and are its credentials set?"
        with self._as_cluster_error("cannot be used", remedy):
            with_timeout(_CHECK_TIMEOUT, lambda: self._check(run_path, new))

    def push(self, run_path: Path) -> int:
        """Copy new and changed files, remove deleted ones, and return the number of files copied.

        The run can be resumed from the copy even if a push is interrupted, because a state is written after all files
        that it refers to. Files may change during a push. Raises ConfigError or ClusterError, also if the storage
        stops responding; the next push completes the copy.
        """

        def push() -> int:
            with self._push_lock:  # a push that timed out may still be running
                try:
                    return self._push(run_path)
                except BaseException:
                    self._cached_versions = None  # the next push lists the copy again
                    raise

        with self._as_cluster_error("cannot be written", f"The run directory {run_path} is complete."):
            return self._unless_stalled(push)

    def pull(self, folder: Path) -> None:
        """Download the run to ``folder``, which must be empty or missing. A failed pull leaves it unchanged.

        Raises RunDirectoryError if the folder is not empty or the copy is not that of a run, ConfigError or
        ClusterError if the storage cannot be read.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunDirectoryError(f"{folder}: already exists and is not empty. Choose another --run-dir.")
        with self._as_cluster_error("cannot be read", "Is it reachable from here, and are its credentials set?"):
            sizes = self._unless_stalled(lambda: self._storage.sizes())
            missing = [name for name in ("config.yaml", "state.json") if name not in sizes]
            if missing:
                raise RunDirectoryError(f"{self.address}: not the copy of a run (no {' and no '.join(missing)} in it)")

            def fill(temporary: Path) -> None:
                make_private(temporary)
                self._unless_stalled(lambda: self._download(sizes, temporary))

            write_folder(folder, fill)

    @property
    def _storage(self) -> Storage:
        if self._opened is None:
            self._opened = Storage.at(*self._location)
        return self._opened

    @property
    def _versions(self) -> dict[str, Version | None]:
        """Version of every file of the copy, or None if its version is unknown."""
        if self._cached_versions is None:
            names = self._storage.sizes()
            versions = self._read_versions() if _VERSIONS_FILE in names else {}
            self._cached_versions = {name: versions.get(name) for name in names if name != _VERSIONS_FILE}
        return self._cached_versions

    def _unless_stalled(self, action: Callable[[], _Result]) -> _Result:
        """Return the result of ``action``. Raises TimeoutError if the storage stalls."""
        return with_timeout(_STALL_TIMEOUT, action, lambda: self._opened.bytes_moved if self._opened else 0)

    def _check(self, run_path: Path, new: bool) -> None:
        ours, copy = run_path.resolve(), self._storage.local
        if copy is not None and (ours.is_relative_to(copy.resolve()) or copy.resolve().is_relative_to(ours)):
            raise RunDirectoryError(
                f"storage_path: of the copy {self.address} and the run directory {run_path}, one contains the other. "
                "Choose another storage_path or --run-dir."
            )
        marker = f".check-{platform.node()}.{os.getpid()}.part"
        self._storage.write(marker, io.BytesIO(b"written to test access"))
        self._storage.remove(marker)
        existing = list(filter(_is_copied, self._storage.sizes()))
        if new and existing:
            raise RunDirectoryError(
                f"{self.address}: already contains a run. Choose another --run-dir (the copy has the same name), or "
                f"resume that run: ray-l4 resume {self.address} --run-dir FOLDER"
            )
        name = "config.yaml"
        if not new and name in existing and not _same_run(self._storage.read(name), (run_path / name).read_bytes()):
            raise RunDirectoryError(
                f"{self.address}: contains another run than {run_path}. Choose another storage_path."
            )

    def _push(self, run_path: Path) -> int:
        began, copied = time.time_ns(), self._versions
        # Files that refer to others are read before the others are listed: the list then has all that they refer to.
        found = sorted((each for each in _files(run_path) if _order(each[0])), key=lambda each: -_order(each[0]))
        last = {name: (version, (run_path / name).read_bytes()) for name, version in found}
        files = {name: version for name, version in _files(run_path) if not _order(name)}
        files |= {name: version for name, (version, _) in last.items()}
        changed = [name for name in sorted(files, key=_order) if copied.get(name) != files[name]]
        deleted = copied.keys() - files.keys()
        if not changed and not deleted:
            return 0
        self._write_versions(without={*changed, *deleted})
        self._remove(name for name in deleted if _order(name))
        for name in changed:
            source = io.BytesIO(last[name][1]) if name in last else _open(run_path / name)
            if source is None:
                continue  # deleted since it was listed; the next push will notice
            with source:
                self._storage.write(name, source)
            copied[name] = files[name] if abs(began - files[name][1]) > _CLOCK_RESOLUTION else None
        self._remove(name for name in deleted if not _order(name))
        self._write_versions()
        return len(changed)

    def _remove(self, names: Iterable[str]) -> None:
        for name in list(names):
            self._storage.remove(name)
            del self._versions[name]

    def _write_versions(self, without: Collection[str] = ()) -> None:
        """Write the list of known versions, except those of the files ``without``, which are about to change."""
        versions = {name: version for name, version in self._versions.items() if version and name not in without}
        self._storage.write(_VERSIONS_FILE, io.BytesIO(json.dumps(versions).encode()))

    def _read_versions(self) -> dict[str, Version]:
        """Read the list of versions. A damaged one is as good as none: everything is copied again."""
        try:
            versions = json.loads(self._storage.read(_VERSIONS_FILE))
            return {name: (int(num_bytes), int(modified)) for name, (num_bytes, modified) in versions.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s/%s: damaged; all files are copied again (%s)", self.address, _VERSIONS_FILE, error)
            return {}

    def _download(self, sizes: Mapping[str, int], folder: Path) -> None:
        """Download all files to ``folder``. They keep their times, so that the next push does not copy them again."""
        versions = self._read_versions() if _VERSIONS_FILE in sizes else {}
        for name in filter(_is_copied, sizes):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage.download(name, path)
            if name in versions:
                os.utime(path, ns=(versions[name][1],) * 2)

    @contextmanager
    def _as_cluster_error(self, problem: str, remedy: str) -> Iterator[None]:
        """Raise failures of the storage as ClusterError."""
        try:
            yield
        except FAILURES as error:
            reason = redacted(str(error)).strip() or type(error).__name__
            raise ClusterError(f"storage_path: {self.address} {problem} ({reason}). {remedy}") from error


def mirror_of(run: RunDirectory, cluster: ClusterConfig) -> Mirror | None:
    """Return the copy of a run that has started, or None if the profile sets no ``storage_path``."""
    if cluster.storage_path is None:
        return None
    manifest = read_json(run.path / "manifest.json")
    return Mirror(cluster.storage_path, manifest.get(MIRROR_NAME_KEY, run.path.resolve().name))


def _same_run(copy: bytes, own: bytes) -> bool:
    """Return whether the copy's ``config.yaml`` is that of the run, or of before it was extended.

    They are read as YAML: a comment in one makes no other run.
    """
    if copy == own:
        return True
    try:
        before, now = yaml.safe_load(copy), yaml.safe_load(own)
        # Data that belongs to the run has another path once the run has been moved.
        begun, stream = ([item | {"path": None} for item in each["stream"]] for each in (before, now))
        return bool({**before, "stream": []} == {**now, "stream": []} and stream[: len(begun)] == begun)
    except (yaml.YAMLError, TypeError, KeyError):
        return False


def _files(run_path: Path) -> Iterator[tuple[str, Version]]:
    """Yield the path within the run directory and the version of every file to copy. Files may change meanwhile."""
    for folder, folders, names in os.walk(run_path):
        folders[:] = filter(_is_copied, folders)
        for name in filter(_is_copied, names):
            path = Path(folder) / name
            with suppress(FileNotFoundError):
                status = path.stat()
                yield path.relative_to(run_path).as_posix(), (status.st_size, status.st_mtime_ns)


def _is_copied(name: str) -> bool:
    return not any(_NOT_COPIED.fullmatch(part) for part in name.split("/"))


def _order(name: str) -> int:
    """Return the position of a file in the order of writing: 0 for files that refer to no others."""
    file_name = name.rpartition("/")[2]
    return _WRITTEN_LAST.index(file_name) + 1 if file_name in _WRITTEN_LAST else 0


def _open(path: Path) -> BinaryIO | None:
    """Open a file for reading. Returns None if it has been deleted."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
