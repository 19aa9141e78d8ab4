"""A file system that fails on demand and can imitate an object store."""

from __future__ import annotations

import io
from typing import Any

from pyarrow import fs


class BrokenConnectionError(OSError):
    """Raised by a file system that has been told to fail."""


class Unreliable:
    """A file system that fails after a given number of calls: once (``heals``) or permanently.

    With ``objects`` it behaves like an object store: a file appears when its stream is closed, and cannot be moved.
    """

    def __init__(self, files: Any, *, objects: bool = False, heals: bool = False) -> None:
        self.type_name = "s3" if objects else "local"
        self._files = files
        self._objects = objects
        self._heals = heals
        self.fail_after(float("inf"))

    def fail_after(self, num_calls: float) -> None:
        """Let this many more calls succeed."""
        self._remaining = num_calls

    def get_file_info(self, selector: Any) -> Any:
        self._count_call()
        return self._files.get_file_info(selector)

    def open_input_stream(self, path: str) -> Any:
        self._count_call()
        return self._files.open_input_stream(path)

    def open_output_stream(self, path: str) -> Any:
        self._count_call()
        if self._objects:
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
        return _Stream(self, self._files, path)

    def create_dir(self, path: str, recursive: bool) -> None:
        assert not self._objects, "object stores have no folders"
        self._count_call()
        self._files.create_dir(path, recursive=recursive)

    def move(self, source: str, target: str) -> None:
        assert not self._objects, "object stores cannot move files"
        self._count_call()
        self._files.move(source, target)

    def delete_file(self, path: str) -> None:
        self._count_call()
        self._files.delete_file(path)

    def _count_call(self) -> None:
        self._remaining -= 1
        if self._remaining == -1 or (self._remaining < 0 and not self._heals):
            raise BrokenConnectionError("the connection is broken")


class _Stream(io.RawIOBase):
    """A stream that writes half of a chunk if the call fails. An object store then discards the file."""

    def __init__(self, owner: Unreliable, files: Any, path: str) -> None:
        self._owner, self._files, self._path = owner, files, path
        self._held = bytearray()
        self._broke = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            self._owner._count_call()
        except BrokenConnectionError:
            self._held += bytes(data)[: len(data) // 2]
            self._broke = True
            raise
        self._held += data
        return len(data)

    def close(self) -> None:
        if not self.closed and not (self._broke and self._owner.type_name == "s3"):
            with self._files.open_output_stream(self._path) as stream:
                stream.write(bytes(self._held))
        super().close()


def mock() -> fs.FileSystem:
    """Return a file system in memory."""
    return fs._MockFileSystem()
