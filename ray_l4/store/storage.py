"""Whole files in a folder of another disk or in an object storage, by name."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from ray_l4.errors import ClusterError, ConfigError

FAILURES = (OSError, pa.ArrowException)
"""What a file system raises."""

_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss")
_PUT_WHOLE = {"s3", "gcs", "abfs"}
"""File systems whose files come into being when their stream is closed, and in which renaming is another copy."""

_RETRY_SECONDS = 30
"""How long Google's client may try again, once it was refused; a quarter of an hour if nobody says."""

_CHUNK = 8 * 2**20

_Result = TypeVar("_Result")


class Storage:
    """A folder of a file system."""

    def __init__(self, filesystem: Any, folder: str) -> None:
        """``filesystem``: one of :mod:`pyarrow.fs`; ``folder``: a path in it, which need not exist."""
        self._files = filesystem
        self._folder = folder.rstrip("/")
        self.moved = 0
        """Bytes written and fetched so far."""

    @classmethod
    def at(cls, address: str, name: str) -> Storage:
        """The folder ``name`` at an address: a folder of this machine, or a URI that :mod:`pyarrow.fs` knows.

        Raises ConfigError if the address has another form, ClusterError if it is a folder that is not there: that
        would be a disk that is not mounted. May raise one of ``FAILURES`` if it is asked about its region.
        """
        if "://" not in address:
            files, folder = fs.LocalFileSystem(), absolute(address)
        else:
            files, folder = _connect(address)
        if files.type_name == "local" and not Path(folder).is_dir():
            raise ClusterError(f"storage_path: {address}: no such folder here. Make it, or mount the disk it is on.")
        return cls(files, f"{folder.rstrip('/')}/{name}")

    @property
    def local(self) -> Path | None:
        """Where it is on this machine, if it is."""
        return Path(self._folder) if self._files.type_name == "local" else None

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by its path within the folder."""
        found = self._files.get_file_info(fs.FileSelector(self._folder, recursive=True, allow_not_found=True))
        start = len(self._folder) + 1
        return {info.path[start:]: info.size for info in found if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        """A small file's contents."""
        with self._files.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        with self._files.open_input_stream(self._path(name)) as stream, path.open("wb") as file:
            file.writelines(self._chunks(stream))

    def write(self, name: str, source: BinaryIO) -> None:
        """Write all of ``source``, instead of an older version if there is one. What is cut short is not there."""
        target = self._path(name)
        if self._files.type_name in _PUT_WHOLE:
            self._put(target, source)
            return
        parent, _, last = target.rpartition("/")
        beside = f"{parent}/.{last}.{os.getpid()}-{threading.get_ident()}.part"
        self._files.create_dir(parent, recursive=True)
        try:
            with self._files.open_output_stream(beside) as stream:
                for chunk in self._chunks(source):
                    stream.write(chunk)
            self._files.move(beside, target)
        except BaseException:
            self._delete_if_possible(beside)
            raise

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def _put(self, path: str, source: BinaryIO) -> None:
        """Write an object. A line that breaks leaves the older version; nothing is left if the source breaks."""
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
                # Its stream, closed in good order on the way here, has put in place what it had got.
                self._delete_if_possible(path)
            raise

    def _chunks(self, source: BinaryIO) -> Iterator[bytes]:
        while chunk := source.read(_CHUNK):
            yield chunk
            self.moved += len(chunk)

    def _delete_if_possible(self, path: str) -> None:
        with suppress(*FAILURES):
            self._files.delete_file(path)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


def absolute(address: str) -> str:
    """An address that means the same in every process of this machine."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


def split(place: str) -> tuple[str, str]:
    """The address of a storage and the name of a folder in it, from the address of the folder."""
    if "://" not in place:
        path = Path(absolute(place))
        return str(path.parent), path.name
    folder, _, name = urlsplit(place).path.rstrip("/").rpartition("/")
    return urlsplit(place)._replace(path=folder).geturl(), name


def join(address: str, name: str) -> str:
    """The address of a folder in a storage."""
    if "://" not in address:
        return str(Path(address) / name)
    parts = urlsplit(address)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def public(address: str) -> str:
    """A text as it may be shown: without the passwords of addresses in it."""
    return re.sub(r"(?<=//)([^/@:]*):[^/@]*@", r"\1:***@", address)


def within(seconds: float, action: Callable[[], _Result], moved: Callable[[], int] = lambda: 0) -> _Result:
    """What ``action`` gives, but without waiting for it for ever: a disk that is gone may never answer.

    ``moved``: how much of it is done; the time begins anew as long as that grows. Raises TimeoutError; what was begun
    may go on in its thread, which ends with the process.
    """
    done: Future[_Result] = Future()

    def work() -> None:
        try:
            done.set_result(action())
        except Exception as error:  # handed to whoever waits, whatever it is
            done.set_exception(error)

    threading.Thread(target=work, name="storage", daemon=True).start()
    before = moved()
    while not wait([done], seconds).done:
        if moved() == before:
            raise TimeoutError(f"no answer in {seconds:g} s")
        before = moved()
    return done.result()


def _connect(address: str) -> tuple[Any, str]:
    parts = urlsplit(address)
    expected = f"a folder, or an address that begins with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"storage_path: {public(address)}: cannot store at {parts.scheme}://; expected {expected}")
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        query = f"{parts.query}&" if parts.query else ""
        address = parts._replace(query=f"{query}retry_limit_seconds={_RETRY_SECONDS}").geturl()
    try:
        return fs.FileSystem.from_uri(address)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"storage_path: {public(address)}: {public(str(error))}; expected {expected}") from error
