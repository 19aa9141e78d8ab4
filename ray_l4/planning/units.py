"""Parsing and printing of memory sizes."""

from __future__ import annotations

import re

from ray_l4.errors import ConfigError

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def parse_size(text: str, where: str) -> int:
    """Return the bytes of ``16GiB``, ``80 GB`` or a plain number.

    Raises ConfigError, which names ``where`` the text comes from, if it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    unit = match[2].lower() or "b" if match else ""
    if not match or unit not in units or float(match[1]) == 0:
        raise ConfigError(f"{where}: {text!r} is not a memory size; expected one like 16GiB, 80GB or 512MiB")
    return round(float(match[1]) * units[unit])


def size_text(nbytes: float) -> str:
    """Return ``nbytes`` in a suitable unit: ``1.4 GiB``, ``512 MiB``."""
    for unit in ("GiB", "MiB", "KiB"):
        if nbytes >= _UNITS[unit]:
            amount = nbytes / _UNITS[unit]
            return f"{amount:.1f} {unit}" if amount < 99.5 else f"{amount:.0f} {unit}"
    return f"{nbytes:.0f} B"
