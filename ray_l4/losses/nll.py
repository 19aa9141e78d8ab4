"""Negative log-likelihood of labels, weighted per token (REFERENCE.md#lamol-loss)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def nll(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor, denominator: float) -> Tensor:
    """Sum over positions of ``weight * -log p(target)``, divided by ``denominator``, in nats (REFERENCE.md#lamol-loss).

    logits_NV: (num_positions, vocab), of any floating type; the arithmetic is float32 or wider.
    targets_N: (num_positions,) token ids. weights_N: (num_positions,), 0 for a position that bears no label loss.
    denominator: the sum of the weights over the *whole* step, all micro-batches and shards, known to the caller alone.

    No position, or weights that are all zero, give exactly 0 and a zero gradient.
    """
    losses_N = functional.cross_entropy(at_least_float32(logits_NV), targets_N, reduction="none")
    return per_step((losses_N * weights_N).sum(), denominator)


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` widened to float32 if they are narrower: a bfloat16 log-softmax keeps two to three digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def per_step(total: Tensor, denominator: float) -> Tensor:
    """``total / denominator``; where nothing in the step bears this loss both are 0, and the result too (REFERENCE.md#word-kd-loss)."""
    return total / (denominator or 1.0)
