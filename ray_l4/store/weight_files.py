"""Whether a file of weights is whole, found out without loading it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

_LENGTH_BYTES = 8
"""Bytes at the start of a safetensors file that give the length of its header."""


def damaged_file(folder: Path) -> str | None:
    """Return the first file of weights in ``folder`` that is damaged, and how; None if none is."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        how = damage(path)
        if how is not None:
            return f"{path} {how}"
    return None


def damage(path: Path) -> str | None:
    """Return how a file of weights is damaged, such as cut off; None if its length and header are right."""
    if path.suffix == ".bin":
        return None if zipfile.is_zipfile(path) else "is damaged: it is not a whole file of PyTorch's"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if _LENGTH_BYTES + length > size:
            return f"is damaged: with {size} bytes it is shorter than its header"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "is damaged: its header cannot be read"
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    return None if size == expected else f"is damaged: it has {size} bytes, but its header describes {expected}"
