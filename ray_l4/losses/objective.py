"""What one head (QA or LM) minimises at the positions that bear a target: labels, and teachers on the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from ray_l4.losses.chunked import chunked_gradient
from ray_l4.losses.distillation import Direction, distillation, mean_log_probs
from ray_l4.losses.nll import at_least_float32, nll


class HeadLoss(NamedTuple):
    """Scalars of one head. Only ``total`` carries a gradient."""

    total: Tensor
    """``nll + distillation_weight * kd`` (``kd`` over the vocabulary's size if so averaged): what is minimised."""
    nll: Tensor
    """Loss on labels per unit of weight."""
    kd: Tensor
    """Divergence from the teachers per position, times T squared but not times the distillation weight."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """How labels and teachers are combined (SPEC 20.3)."""

    distillation_weight: float
    """Lambda. At 0 the divergence is measured and nothing is learned from it."""
    temperature: float
    """Softens teachers and student in the divergence; labels are learned at temperature 1."""
    direction: Direction = "forward"
    average: Literal["token", "vocabulary"] = "token"
    """What the divergence is a mean over: positions, or positions and vocabulary entries (SPEC 20.2)."""


@dataclass(frozen=True)
class Denominators:
    """What one head's sums are divided by: totals of the whole step, all micro-batches and shards."""

    nll: float
    """Sum of the label weights."""
    kd: float
    """Number of distilled positions."""


def head_objective(
    logits_NV: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    num_distilled: int,
    teachers_KV: Sequence[Tensor],
    spec: ObjectiveSpec,
    denominators: Denominators,
) -> HeadLoss:
    """Weighted cross-entropy on all N rows plus lambda times distillation on the first K (SPEC 5, 6.2, 20.3).

    logits_NV: (num_positions, vocab), of any floating type. targets_N: token ids; weights_N: their weights, 0 to drop
    a label (as L4's eq. 12, read literally, does for current samples of later tasks).
    num_distilled: K. teachers_KV: each teacher's log-probabilities (K, vocab) at temperature 1; empty for none.

    Raises ValueError if K exceeds N or a teacher's shape is not (K, vocab).
    """
    _check_shapes(logits_NV, num_distilled, teachers_KV)
    # Widened once, so that the two gradients meet in float32 and are rounded to the type of the logits once.
    logits_NV = at_least_float32(logits_NV)
    label_loss = nll(logits_NV, targets_N, weights_N, denominators.nll)
    if not teachers_KV:
        return HeadLoss(label_loss, label_loss.detach(), label_loss.new_zeros(()))
    teacher_KV = mean_log_probs(teachers_KV, spec.temperature)
    divergence = distillation(logits_NV[:num_distilled], teacher_KV, spec.temperature, denominators.kd, spec.direction)
    weight = spec.distillation_weight / (logits_NV.shape[-1] if spec.average == "vocabulary" else 1)
    # At 0 the term is left out, not multiplied by 0: an infinite divergence would make that NaN.
    total = label_loss + weight * divergence if weight else label_loss
    return HeadLoss(total, label_loss.detach(), divergence.detach())


def head_gradient(
    logits_NV: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    num_distilled: int,
    teachers_KV: Sequence[Tensor],
    spec: ObjectiveSpec,
    denominators: Denominators,
) -> tuple[HeadLoss, Tensor]:
    """``head_objective`` and its gradient (num_positions, vocab), computed in chunks of rows (``chunked_gradient``).

    Teachers are mixed chunk by chunk too; arguments and errors are those of ``head_objective``.
    """
    _check_shapes(logits_NV, num_distilled, teachers_KV)

    def rows_objective(logits_MV: Tensor, rows: slice) -> HeadLoss:
        distilled = slice(min(rows.start, num_distilled), min(rows.stop, num_distilled))
        return head_objective(
            logits_MV,
            targets_N[rows],
            weights_N[rows],
            distilled.stop - distilled.start,
            [teacher_KV[distilled] for teacher_KV in teachers_KV],
            spec,
            denominators,
        )

    scalars, gradient_NV = chunked_gradient(rows_objective, logits_NV)
    return HeadLoss(*scalars), gradient_NV


def _check_shapes(logits_NV: Tensor, num_distilled: int, teachers_KV: Sequence[Tensor]) -> None:
    num_positions, vocab = logits_NV.shape
    if not 0 <= num_distilled <= num_positions:
        raise ValueError(f"num_distilled is {num_distilled}; expected 0 to {num_positions}, the number of positions")
    for index, teacher_KV in enumerate(teachers_KV):
        if teacher_KV.shape != (num_distilled, vocab):
            raise ValueError(
                f"teacher {index}: log-probabilities have shape {tuple(teacher_KV.shape)}; expected "
                f"{(num_distilled, vocab)}: one row per distilled position, one shared vocabulary"
            )
