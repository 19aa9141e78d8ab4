"""Weights of the labels of a step: whether current labels count, and whether replayed ones share their mean."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ray_l4.losses.nll import per_step


def label_weights(
    weights_N: Tensor, num_current: int, *, current: bool, means: Literal["pooled", "separate"]
) -> tuple[Tensor, float]:
    """Return the weights of one head's labels, and the denominator of the weighted sum of their losses.

    REFERENCE.md#lamol-loss, #word-kd-loss, #l4-choices row 2.

    Args:
        weights_N: (num_positions,) weight of each label of the *whole* step, over all micro-batches and ranks; those of
            current examples first.
        num_current: number of labels of current examples.
        current: whether current examples have a loss on their labels.
        means: ``pooled`` divides the weighted sum over current and replayed labels by the sum of their weights;
            ``separate`` adds the mean over current labels and the mean over replayed labels, each with weight 1.
    """
    groups = [
        weights_N[:num_current] if current else torch.zeros_like(weights_N[:num_current]),
        weights_N[num_current:],
    ]
    if means == "pooled":
        kept_N = torch.cat(groups)
        return kept_N, float(kept_N.sum())
    return torch.cat([per_step(group, float(group.sum())) for group in groups]), 1.0
