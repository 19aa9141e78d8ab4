"""Which labels count in a step, and by how much: current examples, replayed ones, and the mean they share or not."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ray_l4.losses.nll import per_step


def label_weights(
    weights_N: Tensor, num_current: int, *, current: bool, means: Literal["pooled", "separate"]
) -> tuple[Tensor, float]:
    """The weights of one head's labels, and what their sum of losses is divided by (REFERENCE.md#lamol-loss, #word-kd-loss, #l4-choices row 2).

    weights_N: (num_positions,) weight of each label, those of current examples (``num_current``) first; of the whole
    step, all micro-batches and shards.
    current: whether current examples bear a loss on their labels.
    means: ``pooled`` divides the sum over all that counts by the sum of its weights; ``separate`` adds the mean over
    current and the mean over replayed labels, each with weight 1.
    """
    groups = [
        weights_N[:num_current] if current else torch.zeros_like(weights_N[:num_current]),
        weights_N[num_current:],
    ]
    if means == "pooled":
        pooled_N = torch.cat(groups)
        return pooled_N, float(pooled_N.sum())
    return torch.cat([per_step(group, float(group.sum())) for group in groups]), 1.0
