"""Work on many tensors, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

BUCKET_BYTES = 2**26
"""Weights that are updated, or gradients that are summed in one message, together: few calls, and little memory beside
the tensors themselves. The roots that AdamW needs would take half a gigabyte for all of GPT-2."""


def buckets(tensors: Iterable[Tensor], size: int = BUCKET_BYTES) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists that begin anew before they exceed ``size`` bytes; each holds at least one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(own.nbytes for own in bucket) + tensor.nbytes > size:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
