"""Names of files and folders for names that users choose: of any length, in any script."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

LONGEST = 160
"""Bytes of a user's name in a file name. File systems allow 255, and stage, student and suffixes need the rest."""
_DIGEST_BYTES = 6
PRIVATE = 0o700
"""Mode of the folders of runs: nobody but their owner reaches what is in them, whatever its own mode."""


def file_part(name: str) -> str:
    """Return ``name`` as a part of a file name: quoted, and if it is too long, shortened with a digest of the whole.

    Different names give different parts: ``=``, before the digest, is not in a quoted name.
    """
    quoted = quote(name, safe="")
    return quoted if len(quoted) <= LONGEST else re.sub("%.?$", "", quoted[: LONGEST - 13]) + f"={_digest(name)}"


def folder_name(text: str, longest: int = LONGEST) -> str:
    """Return a name that a folder can have, readable in any script.

    It is shortened with a digest if it has more than ``longest`` bytes.
    """
    readable = re.sub(r"[/\x00-\x1f\x7f]+", "-", text)
    if len(readable.encode()) <= longest:
        return readable
    kept = readable.encode()[: longest - 13].decode(errors="ignore")
    return f"{kept}-{_digest(text)}"


def make_private(folder: Path) -> None:
    """Create ``folder``, or take the empty one that is there, and let nobody but its owner enter it.

    Raises OSError if it cannot be created.
    """
    folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    with suppress(PermissionError):  # it was there before, and belongs to another user, who decides
        folder.chmod(PRIVATE)


def make_new_folder(path: Path) -> Path:
    """Create ``path``, or ``path-2``, ``path-3``, ... if it exists already, and return the folder created.

    Of several processes each creates another one. Raises OSError if the folder cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, folder = 1, path
    while True:
        try:
            folder.mkdir(mode=PRIVATE)
            return folder
        except FileExistsError:
            number += 1
            folder = path.with_name(f"{path.name}-{number}")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
