"""JSON records of a run: each holds the version of its format, and a checksum of all else that it holds.

Both are under one key, which comes last; all other keys stay where a person, ``jq`` or a report looks for them. The
checksum is one of values, not of bytes: a record may be laid out anew. Records of earlier versions have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.atomic import write_json

SEAL = "ray_l4"
"""Key of ``{"format": 1, "sha256": "..."}``."""

FORMAT = 1
"""Version of the format of records that this version writes; it reads this one and earlier ones."""


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record as indented JSON, atomically, with its format and checksum."""
    write_json(path, {**values, SEAL: {"format": FORMAT, "sha256": _checksum(values)}})


def unsealed(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given to ``write_record``. ``values``: the object in the file at ``path``.

    Raises DamagedError if the checksum is another one, RunDirectoryError if a later version wrote the record.
    """
    content = {name: value for name, value in values.items() if name != SEAL}
    if SEAL not in values:
        return content
    seal = values[SEAL]
    version = seal.get("format") if isinstance(seal, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise RunDirectoryError(
            f"{path}: has format {version}, written by a later version of ray-l4; this one reads up to {FORMAT}. "
            "Update ray-l4."
        )
    if not isinstance(seal, dict) or version != FORMAT or seal.get("sha256") != _checksum(content):
        raise DamagedError(
            f"{path}: damaged: its values are not those that its checksum was computed from. Restore it from a copy, "
            f"or, if it was changed on purpose, remove its key {SEAL!r}."
        )
    return content


def _checksum(values: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(values))  # keys are texts, tuples are lists
    return hashlib.sha256(json.dumps(as_read, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
