"""Texts that several files hold: which ones are the same, and each of them once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from ray_l4.tasks.rows import Row


def key_of(text: str) -> bytes:
    """What two copies of a text share whatever their spacing, punctuation and case: a digest of letters and digits."""
    letters = "".join(filter(str.isalnum, text.casefold())) or text
    return hashlib.blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def distinct(rows: Iterable[Row], taken: Iterable[bytes] = (), key: Callable[[str], bytes] = key_of) -> Iterator[Row]:
    """The rows the ``key`` of whose context is neither among ``taken`` nor that of an earlier row."""
    seen = set(taken)
    for row in rows:
        found = key(row["context"])
        if found not in seen:
            seen.add(found)
            yield row
