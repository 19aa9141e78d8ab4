"""The file or folder that a user names for output, with ``--out`` or another option."""

from __future__ import annotations

import os
from pathlib import Path

from ray_l4.errors import ConfigError, UnwritableError
from ray_l4.store.atomic import write_text


def write_out(text: str, out: Path, option: str = "--out") -> None:
    """Write ``text`` to a file; missing folders are created. Raises ConfigError if that is not possible."""
    try:
        write_text(out, text)
    except UnwritableError as error:
        raise ConfigError(f"{option} {error}") from error
    except OSError as error:
        raise ConfigError(f"{option} {out}: cannot be written ({error.strerror})") from error


def check_file(out: Path, option: str) -> None:
    """Raise ConfigError, before any work, if the file cannot be written."""
    if out.is_dir():
        raise ConfigError(f"{option} {out}: is a folder; expected the name of a file")
    check_folder(out.parent, option)


def check_folder(out: Path, option: str) -> None:
    """Raise ConfigError, before any work, if files cannot be written into the folder ``out``, which may be missing."""
    there = next(each for each in (out.absolute(), *out.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ConfigError(f"{option} {out}: {there} is a file; expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {out}: nothing can be written into {there} (no permission). Name another folder.")
