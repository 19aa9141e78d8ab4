"""Work on many tensors, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


def buckets(tensors: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists that begin anew before they exceed ``size`` bytes; each holds at least one."""
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
