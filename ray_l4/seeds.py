"""Every stream of randomness follows from one run seed, by name."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for the stream called ``names`` (purpose, peer, stage, step, ...) of the run with ``seed``.

    The result depends on the names alone, never on the order in which streams are asked for, so that work can be
    split, restarted or moved without changing a single number.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
