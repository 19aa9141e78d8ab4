"""Checksums of files, as ``sha256:<digits>`` or ``git:<digits>``.

``git`` is Git's blob id: the SHA-1 of ``blob <size>``, a zero byte and the contents. A repository lists it for each of
its files.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ray_l4.tasks.files import OPENERS, read_bytes


def checksum_of(path: Path, kind: str) -> str:
    """Return the checksum of a file as stored on disk (compressed, if it is); ``kind`` is ``sha256`` or ``git``."""
    with path.open("rb") as file:
        return _checksum(file, path.stat().st_size, kind)


def matches(path: Path, checksum: str) -> bool:
    """Return whether the file, or its contents if it is compressed, has this checksum.

    Raises:
        DataError: the file cannot be read or unpacked.
    """
    kind = checksum.partition(":")[0]
    if checksum_of(path, kind) == checksum:
        return True
    if path.suffix not in OPENERS:
        return False
    contents = read_bytes(path)
    return _checksum(BytesIO(contents), len(contents), kind) == checksum


def _checksum(file: BinaryIO, size: int, kind: str) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size) if kind == "git" else hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return f"{kind}:{digest.hexdigest()}"
