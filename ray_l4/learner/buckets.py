"""Splitting a list of tensors into groups of limited size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


def buckets(tensors: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Yield the tensors in order, in lists of at most ``size`` bytes; a larger tensor gets a list of its own."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        nbytes = tensor.nbytes
        if bucket and held + nbytes > size:
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += nbytes
    if bucket:
        yield bucket
