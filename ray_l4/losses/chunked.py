"""Value and gradient of a loss over rows of logits, some rows at a time.

With a vocabulary of 50,000 every float32 temporary of a loss is 0.2 MB per position, and autograd keeps several of them
until the backward pass. Here each chunk of rows goes forward and backward before the next one starts, so that only
one chunk's temporaries live; beside the logits there is one buffer of their size, their gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RowObjective = Callable[[Tensor, slice], tuple[Tensor, ...]]
"""(logits of some rows, which rows they are) -> scalars, each a sum over rows; the first one is minimised."""

CHUNK_ELEMENTS = 2**22
"""Logits per chunk: 16 MiB in float32, 83 rows of GPT-2's vocabulary.

With 600 positions of GPT-2's vocabulary on a CPU, 2**17 to 2**23 ran about three times as fast as 2**24 and as the
plain form: the allocator reuses blocks below 32 MiB and maps larger ones afresh, page by page. Within that range the
larger sizes launch fewer kernels on an accelerator, the smaller ones save memory.
"""


def chunked_gradient(
    objective: RowObjective, logits_NV: Tensor, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[tuple[Tensor, ...], Tensor]:
    """All scalars of ``objective`` summed over the rows, and the gradient of the first one with respect to the logits.

    logits_NV: (num_rows, vocab), no row included; its graph is not touched. To go on: ``logits_NV.backward(gradient)``.
    chunk_elements: logits per chunk, rounded down to whole rows (at least one).

    One chunk gives the plain form's result bit for bit, several differ from it by the order of summation. The objective
    must be a sum over rows (with denominators fixed beforehand), and is called at least once.
    """
    num_rows, vocab = logits_NV.shape
    rows_per_chunk = max(1, chunk_elements // max(1, vocab))
    gradient_NV = torch.empty_like(logits_NV)
    chunks: list[Tensor] = []
    for first in range(0, max(1, num_rows), rows_per_chunk):
        rows = slice(first, min(first + rows_per_chunk, num_rows))
        leaf = logits_NV.detach()[rows].requires_grad_()
        with torch.enable_grad():
            scalars = objective(leaf, rows)
        (gradient_NV[rows],) = torch.autograd.grad(scalars[0], leaf)
        chunks.append(torch.stack([scalar.detach() for scalar in scalars]))
    return torch.stack(chunks).sum(dim=0).unbind(), gradient_NV
