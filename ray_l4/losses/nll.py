"""Negative log-likelihood of labels, weighted per token (REFERENCE.md#lamol-loss)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def nll(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor, denominator: float) -> Tensor:
    """Return the sum over positions of ``weight * -log p(target)``, divided by ``denominator``, in nats.

    REFERENCE.md#lamol-loss. Without positions, or with all weights 0, the result is exactly 0 with a zero gradient.

    Args:
        logits_NV: (num_positions, vocab), of any floating-point type; the arithmetic is float32 or wider.
        targets_N: (num_positions,) token ids.
        weights_N: (num_positions,) weights, 0 for a position without a loss on its label.
        denominator: sum of the weights over the *whole* step, all micro-batches and ranks.
    """
    losses_N = functional.cross_entropy(at_least_float32(logits_NV), targets_N, reduction="none")
    return per_step((losses_N * weights_N).sum(), denominator)


def at_least_float32(values: Tensor) -> Tensor:
    """Widen ``values`` to float32 if they are narrower: a log-softmax in bfloat16 is exact to two or three digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def per_step(total: Tensor, denominator: float) -> Tensor:
    """Return ``total / denominator``, or 0 if no position of the step has this loss, in which case both are 0.

    REFERENCE.md#word-kd-loss.
    """
    return total / (denominator or 1.0)
