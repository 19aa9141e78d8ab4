"""A copy of a run directory that grows with it, from which the run can go on where its disk is lost.

It stands in a folder of another disk or in an object storage (``storage_path``) and holds the files of the run
directory under their names, and a list of their versions, ``.mirror.json``. Only one process at a time writes it.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, RunDirectoryError
from ray_l4.store.atomic import write_folder
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.store.storage import FAILURES, Storage, join, public, split, within

_Result = TypeVar("_Result")
Version: TypeAlias = tuple[int, int]
"""Bytes and time of modification (ns) of a local file: enough to tell whether it has changed."""

NAME_KEY = "mirror"
"""Key of the manifest: what the copy is called, whatever the run directory is called later."""

_LIST = ".mirror.json"
_NOT_COPIED = re.compile(r"\.lock|\.mirror\.json|\..*\.(part|old)")
"""Names of files and folders that are nobody's result."""

_MARKS = ("state.json", "summary.json", "config.yaml")
"""Files that vouch for others, in the order in which they are written, after those."""

_TICK = 100_000_000
"""Nanoseconds in which a file may change once more and keep its time of modification."""

_PATIENCE = 60.0
"""Seconds for a storage to answer at the start of a run."""

_STALLED = 300.0
"""Seconds without a byte moved after which a storage is given up, for this time."""


class Mirror:
    """The copy of one run directory."""

    def __init__(self, address: str, run_name: str, storage: Storage | None = None) -> None:
        """``address``: that of the storage, in which the copy is the folder ``run_name``.

        ``storage``: that folder, where it is not to be looked up.
        """
        self.name = run_name
        self.place = public(join(address, run_name))
        self._where = (address, run_name)
        self._opened = storage
        self._known: dict[str, Version | None] | None = None
        self._one_at_a_time = threading.Lock()

    @classmethod
    def at(cls, place: str) -> Mirror:
        """The copy at the address of its own folder."""
        return cls(*split(place))

    def check(self, run_path: Path, *, new: bool) -> None:
        """Make sure that the run at ``run_path`` can be copied here: write something, and look who else is here.

        Raises ConfigError or ClusterError if the storage cannot be used (within a minute), RunDirectoryError if
        another run is here, or any run if this one is ``new``.
        """
        with self._explained("cannot be used", "Is it reachable and writable from here, and are its credentials set?"):
            within(_PATIENCE, lambda: self._check(run_path, new))

    def push(self, run_path: Path) -> int:
        """Copy what is new or has changed, and remove what is gone. Returns the number of files copied.

        Wherever this is cut short, the run can go on from the copy: a state is written after all that it names. Files
        may change meanwhile. Raises ConfigError or ClusterError, also if the storage has stopped to answer; the next
        push makes up for it.
        """

        def push() -> int:
            with self._one_at_a_time:  # one that was given up may still be there
                try:
                    return self._push(run_path)
                except BaseException:
                    self._known = None  # the next push looks again
                    raise

        with self._explained("cannot be written", f"What the run has learned is safe in {run_path}."):
            return self._unless_stalled(push)

    def pull(self, folder: Path) -> None:
        """Bring the run to a ``folder`` that is empty or not there yet. A pull that fails leaves it so.

        Raises RunDirectoryError if the folder is taken or there is no run to bring, ConfigError or ClusterError if the
        storage cannot be read.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunDirectoryError(f"{folder}: is there already and not empty. Choose another --run-dir.")
        with self._explained("cannot be read", "Is it reachable from here, and are its credentials set?"):
            sizes = self._unless_stalled(lambda: self._storage.sizes())
            missing = [name for name in ("config.yaml", "state.json") if name not in sizes]
            if missing:
                raise RunDirectoryError(f"{self.place}: not the copy of a run (no {' and no '.join(missing)} in it)")
            write_folder(folder, lambda beside: self._unless_stalled(lambda: self._fetch(sizes, beside)))

    @property
    def _storage(self) -> Storage:
        if self._opened is None:
            self._opened = Storage.at(*self._where)
        return self._opened

    @property
    def _there(self) -> dict[str, Version | None]:
        """What the copy holds: which version of each file, or None where that is not certain."""
        if self._known is None:
            names = self._storage.sizes()
            versions = self._noted() if _LIST in names else {}
            self._known = {name: versions.get(name) for name in names if name != _LIST}
        return self._known

    def _unless_stalled(self, action: Callable[[], _Result]) -> _Result:
        return within(_STALLED, action, lambda: self._opened.moved if self._opened else 0)

    def _check(self, run_path: Path, new: bool) -> None:
        ours, copy = run_path.resolve(), self._storage.local
        if copy is not None and (ours.is_relative_to(copy.resolve()) or copy.resolve().is_relative_to(ours)):
            raise RunDirectoryError(
                f"storage_path: the copy at {self.place} and the run directory {run_path} lie in each other. "
                "Choose another storage_path or --run-dir."
            )
        marker = f".check-{platform.node()}.{os.getpid()}.part"
        self._storage.write(marker, io.BytesIO(b"written to see whether it can be"))
        self._storage.remove(marker)
        there = list(filter(_is_copied, self._storage.sizes()))
        if new and there:
            raise RunDirectoryError(
                f"{self.place}: there is a run here already. Choose another --run-dir: the copy is named after it. Or "
                f"go on with that run: ray-l4 resume {self.place} --run-dir FOLDER"
            )
        name = "config.yaml"
        if not new and name in there and self._storage.read(name) != (run_path / name).read_bytes():
            raise RunDirectoryError(f"{self.place}: another run than {run_path}. Choose another storage_path.")

    def _push(self, run_path: Path) -> int:
        began, there = time.time_ns(), self._there
        # What vouches for others is read before they are listed: all that it names is then among them.
        marks = {name: (version, (run_path / name).read_bytes()) for name, version in _files(run_path) if _rank(name)}
        files = {name: version for name, version in _files(run_path) if not _rank(name)}
        files |= {name: version for name, (version, _) in marks.items()}
        changed = [name for name in sorted(files, key=_rank) if there.get(name) != files[name]]
        gone = there.keys() - files.keys()
        if not changed and not gone:
            return 0
        self._note(without={*changed, *gone})
        self._remove(name for name in gone if _rank(name))
        for name in changed:
            source = io.BytesIO(marks[name][1]) if name in marks else _open(run_path / name)
            if source is None:
                continue  # gone since it was listed, which the next push will see
            with source:
                self._storage.write(name, source)
            there[name] = files[name] if abs(began - files[name][1]) > _TICK else None
        self._remove(name for name in gone if not _rank(name))
        self._note()
        return len(changed)

    def _remove(self, names: Iterable[str]) -> None:
        for name in list(names):
            self._storage.remove(name)
            del self._there[name]

    def _note(self, without: Collection[str] = ()) -> None:
        """Write the list of versions, of those that are certain and not about to change."""
        versions = {name: version for name, version in self._there.items() if version and name not in without}
        self._storage.write(_LIST, io.BytesIO(json.dumps(versions).encode()))

    def _noted(self) -> dict[str, Version]:
        listed = json.loads(self._storage.read(_LIST))
        return {name: (num_bytes, modified) for name, (num_bytes, modified) in listed.items()}

    def _fetch(self, sizes: Mapping[str, int], folder: Path) -> None:
        """Bring all files to a folder. They keep their times, so that the next push need not copy them again."""
        versions = self._noted() if _LIST in sizes else {}
        for name in filter(_is_copied, sizes):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage.fetch(name, path)
            if name in versions:
                os.utime(path, ns=(versions[name][1],) * 2)

    @contextmanager
    def _explained(self, what: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise ClusterError(
                f"storage_path: {self.place} {what} ({public(str(error)).strip() or type(error).__name__}). {remedy}"
            ) from error


def mirror_of(run: RunDirectory, cluster: ClusterConfig) -> Mirror | None:
    """The copy of a run that has begun; None if the profile wants none."""
    if cluster.storage_path is None:
        return None
    manifest = read_json(run.path / "manifest.json")
    return Mirror(cluster.storage_path, manifest.get(NAME_KEY, run.path.resolve().name))


def _files(run_path: Path) -> Iterator[tuple[str, Version]]:
    """Every file that is copied, by its path within the run directory. It may change while one looks."""
    for folder, folders, names in os.walk(run_path):
        folders[:] = filter(_is_copied, folders)
        for name in filter(_is_copied, names):
            path = Path(folder) / name
            with suppress(FileNotFoundError):
                status = path.stat()
                yield path.relative_to(run_path).as_posix(), (status.st_size, status.st_mtime_ns)


def _is_copied(name: str) -> bool:
    return not any(_NOT_COPIED.fullmatch(part) for part in name.split("/"))


def _rank(name: str) -> int:
    """0 for what vouches for nothing, else how late it is written."""
    last = name.rpartition("/")[2]
    return _MARKS.index(last) + 1 if last in _MARKS else 0


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
