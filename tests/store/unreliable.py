"""A file system that breaks where it is told to, and one that behaves as an object storage does."""

from __future__ import annotations

import io
from typing import Any

from pyarrow import fs


class BrokenLineError(OSError):
    """What the file system raises once it is broken."""


class Unreliable:
    """A file system that does so many things, and then fails: once, or for good.

    As ``objects`` it has no way to move a file: what is written is there once its stream is closed.
    """

    def __init__(self, files: Any, *, objects: bool = False, heals: bool = False) -> None:
        self.type_name = "s3" if objects else "local"
        self._files = files
        self._objects = objects
        self._heals = heals
        self.breaks_after(float("inf"))

    def breaks_after(self, works: float) -> None:
        """From now on so many things work."""
        self._left = works

    def get_file_info(self, selector: Any) -> Any:
        self._count()
        return self._files.get_file_info(selector)

    def open_input_stream(self, path: str) -> Any:
        self._count()
        return self._files.open_input_stream(path)

    def open_output_stream(self, path: str) -> Any:
        self._count()
        if self._objects:
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
        return _Stream(self, self._files, path)

    def create_dir(self, path: str, recursive: bool) -> None:
        assert not self._objects, "object storages have no folders"
        self._count()
        self._files.create_dir(path, recursive=recursive)

    def move(self, source: str, target: str) -> None:
        assert not self._objects, "moving is copying there"
        self._count()
        self._files.move(source, target)

    def delete_file(self, path: str) -> None:
        self._count()
        self._files.delete_file(path)

    def _count(self) -> None:
        self._left -= 1
        if self._left == -1 or (self._left < 0 and not self._heals):
            raise BrokenLineError("the line is dead")


class _Stream(io.RawIOBase):
    """A stream of which half arrives when the line breaks; an object storage drops what was not closed in order."""

    def __init__(self, line: Unreliable, files: Any, path: str) -> None:
        self._line, self._files, self._path = line, files, path
        self._held = bytearray()
        self._broke = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            self._line._count()
        except BrokenLineError:
            self._held += bytes(data)[: len(data) // 2]
            self._broke = True
            raise
        self._held += data
        return len(data)

    def close(self) -> None:
        if not self.closed and not (self._broke and self._line.type_name == "s3"):
            with self._files.open_output_stream(self._path) as stream:
                stream.write(bytes(self._held))
        super().close()


def mock() -> fs.FileSystem:
    """A file system in memory."""
    return fs._MockFileSystem()
