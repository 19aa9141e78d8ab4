"""Checksums of files: ``sha256:<digits>``, or ``git:<digits>``, the id that git gives the contents of a file.

Git's id (SHA-1 of ``blob <size>``, a zero byte and the contents) is what a repository itself lists for a file.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ray_l4.tasks.files import OPENERS, read_bytes


def checksum_of(path: Path, kind: str) -> str:
    """The checksum of a file as it lies on the disk; ``kind`` is ``sha256`` or ``git``."""
    with path.open("rb") as file:
        return _checksum(file, path.stat().st_size, kind)


def matches(path: Path, checksum: str) -> bool:
    """Whether the contents have this checksum: of the file, or of what is in it where it is compressed.

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
