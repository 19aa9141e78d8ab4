"""The file that a user names with ``--out``."""

from __future__ import annotations

from pathlib import Path

from ray_l4.errors import ConfigError
from ray_l4.store.atomic import write_text


def write_out(text: str, out: Path) -> None:
    """Write ``text`` to a file; missing folders are created. Raises ConfigError if that is not possible."""
    try:
        write_text(out, text)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
