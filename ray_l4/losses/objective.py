"""Objective of one head (QA or LM): cross-entropy on labels, plus distillation from teachers on the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ray_l4.losses.distillation import Direction, distillation, mean_log_probs
from ray_l4.losses.nll import at_least_float32, nll
from ray_l4.losses.targets import Targets


class HeadLoss(NamedTuple):
    """Scalars of one head. Only ``total`` carries a gradient."""

    total: Tensor
    """The objective: ``nll + distillation_weight * kd``, with ``kd`` divided by the vocabulary size if so averaged."""
    nll: Tensor
    """Loss on labels per unit of weight, in nats."""
    kd: Tensor
    """Divergence from the teachers per position, in nats, times T squared but not times the distillation weight."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """Combination of the losses on labels and on teachers (REFERENCE.md#l4-choices)."""

    distillation_weight: float
    """Lambda. At 0 the divergence is measured but has no gradient."""
    temperature: float
    """Temperature T of teachers and student in the divergence; labels are learned at temperature 1."""
    direction: Direction = "forward"
    average: Literal["token", "vocabulary"] = "token"
    """Divergence averaged over positions, or over positions and vocabulary entries (REFERENCE.md#l4-released)."""


@dataclass(frozen=True)
class Denominators:
    """Denominators of one head's sums: totals of the whole step, over all micro-batches and ranks."""

    nll: float
    """Sum of the label weights."""
    kd: float
    """Number of distilled positions."""


def head_objective(
    logits_NV: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    num_distilled: int,
    teachers: Sequence[Targets],
    spec: ObjectiveSpec,
    denominators: Denominators,
    first: int = 0,
) -> HeadLoss:
    """Return the weighted cross-entropy on all N rows plus lambda times the distillation on the first K rows.

    REFERENCE.md#lamol-loss, #word-kd-loss, #l4-choices.

    Args:
        logits_NV: (num_positions, vocab), of any floating-point type.
        targets_N: (num_positions,) token ids.
        weights_N: (num_positions,) weights of the labels; 0 drops a label (as L4's eq. 12, read literally, does for
            current examples of later tasks).
        num_distilled: K.
        teachers: each teacher's predictions; empty for no distillation.
        spec: how the two losses are combined.
        denominators: totals of the whole step.
        first: index of the first row in the teachers' positions.

    Raises:
        ValueError: K exceeds N, or a teacher has fewer positions or another vocabulary.
    """
    check_rows(len(logits_NV), num_distilled, first, teachers)
    # Widened once, so that the two gradients are added in float32 and rounded to the type of the logits once.
    logits_NV = at_least_float32(logits_NV)
    label_loss = nll(logits_NV, targets_N, weights_N, denominators.nll)
    if not teachers:
        return HeadLoss(label_loss, label_loss.detach(), label_loss.new_zeros(()))
    logits_KV = logits_NV[:num_distilled]
    with torch.no_grad():
        rows = slice(first, first + num_distilled)
        softened = [teacher.log_probs(rows, logits_KV.detach(), spec.temperature) for teacher in teachers]
        check_vocabularies(softened, logits_KV)
        teacher_KV = mean_log_probs(softened)
    divergence = distillation(logits_KV, teacher_KV, spec.temperature, denominators.kd, spec.direction)
    weight = spec.distillation_weight / (logits_NV.shape[-1] if spec.average == "vocabulary" else 1)
    # At weight 0 the term is left out, because 0 times an infinite divergence would be NaN.
    total = label_loss + weight * divergence if weight else label_loss
    return HeadLoss(total, label_loss.detach(), divergence.detach())


def check_rows(num_positions: int, num_distilled: int, first: int, teachers: Sequence[Targets]) -> None:
    """Raise ValueError if the teachers did not predict all distilled positions; arguments as ``head_objective``."""
    if not 0 <= num_distilled <= num_positions:
        raise ValueError(f"num_distilled is {num_distilled}; expected 0 to {num_positions}, the number of positions")
    for index, teacher in enumerate(teachers):
        if first + num_distilled > teacher.num_positions:
            raise ValueError(
                f"teacher {index} has predictions for {teacher.num_positions} positions; expected one for each "
                f"distilled position, {first + num_distilled}"
            )


def check_vocabularies(softened: Sequence[Tensor], logits_KV: Tensor) -> None:
    """Raise ValueError if a teacher's log-probabilities have another shape than the student's logits."""
    for index, teacher_KV in enumerate(softened):
        if teacher_KV.shape != logits_KV.shape:
            raise ValueError(
                f"teacher {index}: log-probabilities have shape {tuple(teacher_KV.shape)}; expected "
                f"{tuple(logits_KV.shape)}: one row per distilled position, one shared vocabulary"
            )
