"""Removal of duplicate texts across several files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from ray_l4.tasks.rows import Row


def key_of(text: str) -> bytes:
    """Return a digest of a text's letters and digits: equal for copies that differ in spacing, punctuation or case.

    A text without letters or digits is hashed as it is.
    """
    letters = "".join(filter(str.isalnum, text.casefold())) or text
    return hashlib.blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def distinct(rows: Iterable[Row], taken: Iterable[bytes] = (), key: Callable[[str], bytes] = key_of) -> Iterator[Row]:
    """Yield the rows whose context has a ``key`` that is not in ``taken`` and has not occurred before."""
    seen = set(taken)
    for row in rows:
        found = key(row["context"])
        if found not in seen:
            seen.add(found)
            yield row
