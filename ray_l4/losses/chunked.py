"""Value and gradient of a loss over rows of logits, computed chunk by chunk.

With a vocabulary of 50,000, every float32 temporary of a loss takes 0.2 MB per position, and autograd keeps several of
them until the backward pass. Here each chunk of rows runs forward and backward before the next one starts, so only the
temporaries of one chunk are alive; apart from the logits there is one buffer of their size, their gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

RowObjective = Callable[[Tensor, slice], tuple[Tensor, ...]]
"""(logits of some rows, slice of these rows) -> scalars, each a sum over rows; the first one is minimised."""

CHUNK_ELEMENTS = 2**22
"""Logits per chunk: 16 MiB in float32, 83 rows of GPT-2's vocabulary.

With 600 positions of GPT-2's vocabulary on a CPU, 2**17 to 2**23 ran about three times as fast as 2**24 and as the
plain form: the allocator reuses blocks below 32 MiB but maps larger ones anew, page by page. Within that range, larger
chunks launch fewer kernels on an accelerator and smaller ones save memory.
"""

_rehearsing: ContextVar[bool] = ContextVar("rehearsing", default=False)


@contextmanager
def rehearsed_chunks() -> Iterator[None]:
    """Within this context, compute the first two chunks and the last one only.

    All others take the memory of the second one. That serves ``ray-l4 plan``, which runs on tensors without values: a
    batch of 8,192 positions has hundreds of chunks, and their operators would take it minutes.
    """
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


def chunked_gradient(
    objective: RowObjective, logits_NV: Tensor, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return all scalars of ``objective`` summed over the rows, and the gradient of the first one.

    Args:
        objective: a sum over rows, with denominators fixed in advance. It is called at least once.
        logits_NV: (num_rows, vocab), possibly no rows. Its graph is not used; continue the backward pass with
            ``logits_NV.backward(gradient)``.
        chunk_elements: number of logits per chunk, rounded down to whole rows (at least one).

    Returns:
        The scalars, detached, and the gradient with respect to the logits, (num_rows, vocab). With one chunk they are
        bit for bit those of the plain form; with several, the order of summation differs.
    """
    num_rows, vocab = logits_NV.shape
    rows_per_chunk = max(1, chunk_elements // max(1, vocab))
    gradient_NV = torch.empty_like(logits_NV)
    chunks: list[Tensor] = []
    firsts = range(0, max(1, num_rows), rows_per_chunk)
    for first in sorted({*firsts[:2], *firsts[-1:]}) if _rehearsing.get() else firsts:
        rows = slice(first, min(first + rows_per_chunk, num_rows))
        leaf = logits_NV.detach()[rows].requires_grad_()
        with torch.enable_grad():
            scalars = objective(leaf, rows)
        (gradient_NV[rows],) = torch.autograd.grad(scalars[0], leaf)
        chunks.append(torch.stack([scalar.detach() for scalar in scalars]))
    return torch.stack(chunks).sum(dim=0).unbind(), gradient_NV
