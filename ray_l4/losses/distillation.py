"""Divergence between a student and its teachers (REFERENCE.md#word-kd-loss, #l4-choices)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ray_l4.losses.nll import at_least_float32, per_step

Direction = Literal["forward", "reverse"] | float
"""KL(teacher || student), KL(student || teacher), or the beta of a generalised Jensen-Shannon divergence."""


@torch.no_grad()
def mean_log_probs(softened: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean of the teachers' probabilities, (num_positions, vocab), float32 or wider.

    Args:
        softened: for each teacher, log-probabilities (num_positions, vocab) at the temperature of the divergence: each
            teacher is softened *before* the mean is taken.

    The gradient of the forward KL divergence is linear in its targets, so learning from this mean is exactly the same
    as learning from every teacher and averaging the gradients.
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
    """Return ``T^2 * sum over positions of KL(teacher || student at T) / denominator``, in nats.

    REFERENCE.md#word-kd-loss, #l4-choices rows 4 and 6. Without positions the result is exactly 0, with a zero gradient
    (in the reference implementations it is NaN). A token with probability 0 in the first argument of KL contributes 0.

    Args:
        logits_KV: the student's logits, (num_positions, vocab), at temperature 1.
        teacher_log_probs_KV: log-probabilities of the same shape, already softened and averaged over the teachers
            (``mean_log_probs``); treated as a constant.
        temperature: T.
        denominator: number of distilled positions of the *whole* step; positions are not weighted.
        direction: "reverse" computes KL(student || teacher), which concentrates on the teacher's most likely tokens
            instead of covering all of its distribution. A number beta computes beta KL(teacher || M) +
            (1 - beta) KL(student || M) in place of KL, where M = beta teacher + (1 - beta) student
            (REFERENCE.md#gkd). With several teachers both are the divergence from their mean, not the mean of the
            divergences.

    Raises:
        ValueError: the two shapes differ.
    """
    if logits_KV.shape != teacher_log_probs_KV.shape:
        raise ValueError(
            f"distillation: the student's logits have shape {tuple(logits_KV.shape)}, the teacher's log-probabilities "
            f"{tuple(teacher_log_probs_KV.shape)}; expected the same positions and one shared vocabulary"
        )
    student_KV = torch.log_softmax(at_least_float32(logits_KV) / temperature, dim=-1)
    teacher_KV = at_least_float32(teacher_log_probs_KV.detach())
    if direction == "forward":
        divergence = _kl(teacher_KV, student_KV)
    elif direction == "reverse":
        divergence = _kl(student_KV, teacher_KV)
    else:
        mixture_KV = torch.logaddexp(teacher_KV + math.log(direction), student_KV + math.log1p(-direction))
        divergence = direction * _kl(teacher_KV, mixture_KV) + (1 - direction) * _kl(student_KV, mixture_KV)
    return per_step(temperature**2 * divergence, denominator)


def _kl(left_KV: Tensor, right_KV: Tensor) -> Tensor:
    """Return the sum over positions of KL(left || right), both given by their logarithms."""
    probs_KV = left_KV.exp()
    # A difference of logarithms, not of two sums, so that equal peers give exactly 0. The mask implements 0 log 0 = 0;
    # it is applied before the product, so that the gradient is 0 there too.
    return (probs_KV * torch.where(probs_KV > 0, left_KV - right_KV, 0.0)).sum()
