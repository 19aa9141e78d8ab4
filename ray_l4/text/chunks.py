"""Division of work into fixed chunks."""

from __future__ import annotations


def in_chunks(total: int, size: int) -> list[range]:
    """Divide the indices 0 to total - 1 into consecutive chunks of ``size``, which are decoded as fixed batches.

    Results must not depend on the number of evaluators. A matrix product may round differently in another batch, so the
    batches are fixed and evaluators receive whole batches.
    """
    return [range(start, min(start + size, total)) for start in range(0, total, size)]
