"""Named random streams: every seed is derived from one run seed and a name."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """Return the 63-bit seed of the stream ``names`` (purpose, peer, stage, step, ...) of the run with ``seed``.

    The result depends on the arguments alone, never on the order of calls, so that work can be split, repeated or moved
    without changing any number.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
