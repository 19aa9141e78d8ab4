"""Segments: files of examples that are written once, whole, and never changed.

The name of a segment has its number, the number of its examples and a checksum of its bytes, so that one can count what
waits without reading it, and see what is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Container, Sequence
from pathlib import Path
from typing import NamedTuple

from ray_l4.errors import DamagedError
from ray_l4.store.atomic import finish_replacements, flush, write_file
from ray_l4.store.inbox.example import Example
from ray_l4.store.unwritable import naming_unwritable

_NAME = re.compile(r"(\d{6,})\.(\d+)\.([0-9a-f]{16})\.jsonl")


class Segment(NamedTuple):
    """A segment by its name."""

    number: int
    examples: int
    """Number of its examples."""
    checksum: str

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.number:06d}.{self.examples}.{self.checksum}.jsonl"

    @classmethod
    def of(cls, name: str) -> Segment | None:
        """Return the segment that a file's name stands for; None for another file."""
        found = _NAME.fullmatch(name)
        return None if found is None else cls(int(found[1]), int(found[2]), found[3])


class Shelf:
    """A folder of segments, and the ids of the examples in them, for one writer at a time."""

    def __init__(self, folder: Path) -> None:
        """Begin without knowing what is there: ``refresh`` reads it."""
        self.folder = folder
        self.ids: set[str] = set()
        """Ids of all examples of readable segments."""
        self.damaged: dict[Segment, str] = {}
        """Segments that cannot be read, and why."""
        self.known: dict[str, int] = {}
        """Names of the segments that were read, and the numbers of their examples."""
        self._highest = 0
        self._begun = False

    def refresh(self) -> None:
        """Read the segments that are new to this process. Only for whoever holds the lock of the inbox."""
        if not self._begun:
            finish_replacements(self.folder)
            self._begun = True
        new = segments_in(self.folder, self.known)
        if new:
            flush(self.folder)  # whoever wrote them may have been killed before it did
        for segment in new:
            self._highest = max(self._highest, segment.number)
            try:
                self.ids |= {example.id for example in read_segment(self.folder, segment)}
            except DamagedError as error:
                self.damaged[segment] = str(error)
            else:
                self.known[segment.name] = segment.examples
                self.damaged.pop(segment, None)

    def write(self, examples: Sequence[Example], taken: Collection[int] = ()) -> Segment:
        """Write one segment after ``refresh``; on return it is on disk. Raises UnwritableError if it is refused.

        ``taken``: numbers that were given to segments which may not be there any more.
        """
        data = "".join(f"{example.to_line()}\n" for example in examples).encode()
        _create(self.folder)
        segment = Segment(1 + max([self._highest, *taken]), len(examples), _checksum(data))
        write_file(self.folder / segment.name, lambda temporary: _write(temporary, data))
        self.known[segment.name] = segment.examples
        self._highest = segment.number
        self.ids |= {example.id for example in examples}
        return segment


def segments_in(folder: Path, but: Container[str] = ()) -> list[Segment]:
    """Return the segments of a folder in the order in which they were written; none if there is no folder.

    ``but``: names of files that are left out.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 - many thousands of names, for every request: no Path for each
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(segment for name in names if name not in but and (segment := Segment.of(name)) is not None)


def read_segment(folder: Path, segment: Segment) -> list[Example]:
    """Read the examples of a segment. Raises DamagedError if it is missing or has other bytes than were written."""
    path = folder / segment.name
    try:
        data = path.read_bytes()
        if _checksum(data) != segment.checksum:
            raise ValueError("its bytes are not those of the checksum in its name")
        return [Example.of(json.loads(line)) for line in data.split(b"\n") if line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DamagedError(f"{path}: damaged ({why}); restore it from a copy, or remove it") from error


def _create(folder: Path) -> None:
    """Create a folder and those around it, each on disk before anything is put into it."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    with naming_unwritable(folder):
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            flush(path.parent)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
