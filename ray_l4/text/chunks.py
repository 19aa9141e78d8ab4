"""Fixed units of work."""

from __future__ import annotations


def in_chunks(total: int, size: int) -> list[range]:
    """Divide the indices 0 .. total-1 into consecutive groups of ``size``: the fixed units in which work is decoded.

    Results must not depend on how work is divided among evaluators. A matrix product may round differently for another
    batch, so the batches themselves are fixed, and only whole ones are handed out.
    """
    return [range(start, min(start + size, total)) for start in range(0, total, size)]
