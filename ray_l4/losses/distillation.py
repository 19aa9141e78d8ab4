"""What a peer learns from its teachers' predictions (REFERENCE.md#word-kd-loss, #l4-choices)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ray_l4.losses.nll import at_least_float32, per_step

Direction = Literal["forward", "reverse"]


@torch.no_grad()
def mean_log_probs(softened: Sequence[Tensor]) -> Tensor:
    """Log of the mean of teachers' probabilities, (num_positions, vocab), float32 or wider.

    softened: one (num_positions, vocab) of log-probabilities per teacher, each at the temperature of the divergence:
    every teacher is softened *before* the mean is taken.

    The gradient of a KL divergence depends on its targets linearly, so learning from this mean is the same as
    learning from every teacher and averaging; no approximation.
    """
    if len(softened) == 1:
        return softened[0]
    return torch.logsumexp(torch.stack(list(softened)), dim=0) - math.log(len(softened))


def distillation(
    logits_KV: Tensor,
    teacher_log_probs_KV: Tensor,
    temperature: float,
    denominator: float,
    direction: Direction = "forward",
) -> Tensor:
    """``T^2 * sum over positions of KL(teacher || student at T) / denominator``, in nats (REFERENCE.md#word-kd-loss, #l4-choices rows 4 and 6).

    ``direction``: "reverse" takes KL(student || teacher), which prefers what the teacher is sure of over covering all
    that it thinks possible. Towards several teachers it is the divergence from their mean, not the mean of divergences.

    logits_KV: the student's, (num_positions, vocab), at temperature 1.
    teacher_log_probs_KV: likewise shaped, already softened and mixed (``mean_log_probs``), taken as a constant.
    denominator: the number of distilled positions of the *whole* step; positions have no weights here.

    No position gives exactly 0 and a zero gradient (in the references it is NaN). A token to which the distribution on
    the left gives no probability contributes 0. Raises ValueError if the two shapes differ.
    """
    if logits_KV.shape != teacher_log_probs_KV.shape:
        raise ValueError(
            f"distillation: the student's logits have shape {tuple(logits_KV.shape)}, the teacher's log-probabilities "
            f"{tuple(teacher_log_probs_KV.shape)}; expected the same positions and one shared vocabulary"
        )
    student_KV = torch.log_softmax(at_least_float32(logits_KV) / temperature, dim=-1)
    teacher_KV = at_least_float32(teacher_log_probs_KV.detach())
    left_KV, right_KV = (teacher_KV, student_KV) if direction == "forward" else (student_KV, teacher_KV)
    probs_KV = left_KV.exp()
    # A difference of logarithms, not of two sums: equal peers give exactly 0. The mask is the convention 0 log 0 = 0;
    # it comes before the product, so that the gradient too is 0 there.
    ratios_KV = torch.where(probs_KV > 0, left_KV - right_KV, 0.0)
    return per_step(temperature**2 * (probs_KV * ratios_KV).sum(), denominator)
