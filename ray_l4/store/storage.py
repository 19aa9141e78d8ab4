"""Files in a folder of another disk or in an object store, read and written as a whole, by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from ray_l4.config.paths import expand_home
from ray_l4.config.redaction import redacted
from ray_l4.errors import ClusterError, ConfigError
from ray_l4.store.names import PRIVATE

FAILURES = (OSError, pa.ArrowException)
"""Exceptions of file systems."""

_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss")
_ATOMIC_ON_CLOSE = {"s3", "gcs", "abfs"}
"""File systems in which a file appears when its stream is closed, and in which renaming copies the file."""

_RETRY_SECONDS = 30
"""Seconds for which Google's client retries a failed request. Its own default is a quarter of an hour."""

_CHUNK = 8 * 2**20

_Result = TypeVar("_Result")


class Storage:
    """A folder of a local or remote file system."""

    def __init__(self, filesystem: Any, folder: str) -> None:
        """``filesystem`` is one of :mod:`pyarrow.fs`; ``folder`` is a path in it, which does not need to exist."""
        self._files = filesystem
        self._folder = folder.rstrip("/")
        self.bytes_moved = 0
        """Number of bytes written and downloaded so far."""

    @classmethod
    def at(cls, address: str, name: str) -> Storage:
        """Open the folder ``name`` at an address: a local folder, or a URI that :mod:`pyarrow.fs` supports.

        Raises ConfigError if the address has another form, ClusterError if it is a local folder that does not exist,
        since its disk may not be mounted. Can raise one of ``FAILURES`` when it looks up the region of a bucket.
        """
        if "://" not in address:
            files, folder = fs.LocalFileSystem(), absolute_address(address)
        else:
            files, folder = _connect(address)
        if files.type_name == "local" and not Path(folder).is_dir():
            raise ClusterError(f"storage_path: {address}: no such folder. Create it, or mount the disk it is on.")
        return cls(files, f"{folder.rstrip('/')}/{name}")

    @property
    def local(self) -> Path | None:
        """Path of the folder on this machine, or None if it is remote."""
        return Path(self._folder) if self._files.type_name == "local" else None

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file, by its path within the folder."""
        found = self._files.get_file_info(fs.FileSelector(self._folder, recursive=True, allow_not_found=True))
        start = len(self._folder) + 1
        return {info.path[start:]: info.size for info in found if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        """Return the contents of a small file."""
        with self._files.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        with self._files.open_input_stream(self._path(name)) as stream, path.open("wb") as file:
            file.writelines(self._chunks(stream))

    def write(self, name: str, source: BinaryIO) -> None:
        """Write all of ``source``, replacing an older version. An interrupted write leaves no incomplete file."""
        target = self._path(name)
        if self._files.type_name in _ATOMIC_ON_CLOSE:
            self._put(target, source)
            return
        if self.local is not None:
            self.local.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        parent, _, last = target.rpartition("/")
        temporary = f"{parent}/.{last}.{os.getpid()}-{threading.get_ident()}.part"
        self._files.create_dir(parent, recursive=True)
        try:
            with self._files.open_output_stream(temporary) as stream:
                for chunk in self._chunks(source):
                    stream.write(chunk)
            self._files.move(temporary, target)
        except BaseException:
            self._delete_if_possible(temporary)
            raise

    def remove(self, name: str) -> None:
        """Delete a file if it exists."""
        with suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def _put(self, path: str, source: BinaryIO) -> None:
        """Write an object. If writing fails, the older version remains; if reading ``source`` fails, none remains."""
        reading = False
        try:
            with self._files.open_output_stream(path) as stream:
                reading = True
                for chunk in self._chunks(source):
                    reading = False
                    stream.write(chunk)
                    reading = True
                reading = False
        except BaseException as error:
            if reading or not isinstance(error, FAILURES):
                # Leaving the with block closed the stream, which put the incomplete object in place.
                self._delete_if_possible(path)
            raise

    def _chunks(self, source: BinaryIO) -> Iterator[bytes]:
        while chunk := source.read(_CHUNK):
            yield chunk
            self.bytes_moved += len(chunk)

    def _delete_if_possible(self, path: str) -> None:
        with suppress(*FAILURES):
            self._files.delete_file(path)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


def absolute_address(address: str) -> str:
    """Return an address that does not depend on the current folder of a process."""
    return address if "://" in address else str(expand_home(address).absolute())


def split_address(address: str) -> tuple[str, str]:
    """Split the address of a folder into the address of its parent and its name."""
    if "://" not in address:
        path = Path(absolute_address(address))
        return str(path.parent), path.name
    folder, _, name = urlsplit(address).path.rstrip("/").rpartition("/")
    return urlsplit(address)._replace(path=folder).geturl(), name


def join_address(address: str, name: str) -> str:
    """Return the address of the folder ``name`` at ``address``."""
    if "://" not in address:
        return str(Path(address) / name)
    parts = urlsplit(address)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def with_timeout(seconds: float, action: Callable[[], _Result], progress: Callable[[], int] = lambda: 0) -> _Result:
    """Run ``action`` in a thread and return its result. A disk that is gone may never answer.

    Raises TimeoutError if the action has not finished and ``progress`` has not changed for ``seconds``. The action may
    then continue in its daemon thread.
    """
    done: Future[_Result] = Future()

    def work() -> None:
        try:
            done.set_result(action())
        except Exception as error:  # raised again in the waiting thread
            done.set_exception(error)

    threading.Thread(target=work, name="storage", daemon=True).start()
    before = progress()
    while not wait([done], seconds).done:
        if progress() == before:
            raise TimeoutError(f"no answer in {seconds:g} s")
        before = progress()
    return done.result()


def _connect(address: str) -> tuple[Any, str]:
    """Return the file system of a URI and the path within it. Raises ConfigError if the URI is not supported."""
    parts = urlsplit(address)
    expected = f"a folder, or an address that begins with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"storage_path: {redacted(address)}: cannot store at {parts.scheme}://; expected {expected}")
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        query = f"{parts.query}&" if parts.query else ""
        address = parts._replace(query=f"{query}retry_limit_seconds={_RETRY_SECONDS}").geturl()
    try:
        return fs.FileSystem.from_uri(address)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"storage_path: {redacted(address)}: {redacted(str(error))}; expected {expected}") from error
