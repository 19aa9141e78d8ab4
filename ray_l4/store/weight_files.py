"""Whether a file of weights is whole, found out without loading it."""

from __future__ import annotations

import json
import zipfile
from math import prod
from pathlib import Path
from typing import NamedTuple

_LENGTH_BYTES = 8
"""Bytes at the start of a safetensors file that give the length of its header."""


class DamagedWeightsError(ValueError):
    """How a file of weights is damaged, worded to follow its path."""


class Entry(NamedTuple):
    """A tensor in a safetensors file."""

    num_values: int
    end: int
    """Where its bytes end, counted from the end of the header."""


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
    try:
        header(path)
    except DamagedWeightsError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def header(path: Path) -> dict[str, Entry]:
    """Return the tensors of a safetensors file by name. Its first 8 bytes are the length of a header in JSON.

    Raises DamagedWeightsError if there is no such header, or the file has another length than it says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if _LENGTH_BYTES + length > size:
            raise DamagedWeightsError(f"is damaged: with {size} bytes it is shorter than its header")
        try:
            described = json.loads(file.read(length))
            found = {
                name: Entry(prod(entry["shape"]), int(entry["data_offsets"][1]))
                for name, entry in described.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedWeightsError("is damaged: its header cannot be read") from error
    expected = _LENGTH_BYTES + length + max((entry.end for entry in found.values()), default=0)
    if size != expected:
        raise DamagedWeightsError(f"is damaged: it has {size} bytes, but its header describes {expected}")
    return found
