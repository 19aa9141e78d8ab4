"""The gradient of one head's objective with respect to the logits, written out, a chunk of rows at a time.

Cross-entropy and divergence share one set of logits. Their gradients are differences of softmaxes, so no graph is
needed, and neither all logits nor their whole gradient need to be in memory (as in Liger Kernel's fused linear
distillation, Hsu et al. 2024). ``losses.objective.head_objective`` is the plain form of the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ray_l4.losses.chunked import CACHED_ELEMENTS, CHUNK_ELEMENTS, GPU_ELEMENTS, row_chunks
from ray_l4.losses.nll import at_least_float32
from ray_l4.losses.objective import Denominators, HeadLoss, ObjectiveSpec, check_rows, check_vocabularies
from ray_l4.losses.targets import Targets


class LogitRows(Protocol):
    """The logits of a head's N positions, wherever they come from and wherever their gradient goes."""

    @property
    def shape(self) -> tuple[int, int]:
        """(num_positions, vocab)."""

    def logits(self, rows: slice) -> Tensor:
        """Return the logits of M rows, (M, vocab), without a graph; the caller does not write to them."""

    def add_gradient(self, rows: slice, gradient_MV: Tensor) -> None:
        """Take the gradient with respect to these logits, (M, vocab), float32 or wider; it may be overwritten."""


def head_gradient(
    head: LogitRows,
    targets_N: Tensor,
    weights_N: Tensor,
    num_distilled: int,
    teachers: Sequence[Targets],
    spec: ObjectiveSpec,
    denominators: Denominators,
    first: int = 0,
) -> HeadLoss:
    """Give ``head`` the gradient of ``head_objective``; returns the objective's value, without a graph.

    All other arguments and the errors are those of ``head_objective``.
    """
    num_positions, vocab = head.shape
    check_rows(num_positions, num_distilled, first, teachers)
    factor = spec.distillation_weight / (vocab if spec.average == "vocabulary" else 1)
    scale = spec.temperature * factor / (denominators.kd or 1.0)
    sums: list[Tensor] = []
    on_cpu = targets_N.device.type == "cpu"
    for rows in row_chunks(num_positions, vocab, CHUNK_ELEMENTS if on_cpu else GPU_ELEMENTS):
        logits_MV = at_least_float32(head.logits(rows))
        distilled = slice(min(rows.start, num_distilled), min(rows.stop, num_distilled))
        at = slice(first + distilled.start, first + distilled.stop)
        scores = _scores(teachers, logits_MV[: at.stop - at.start], at, spec.temperature)
        gradient_MV = torch.empty_like(logits_MV)
        for part in row_chunks(len(logits_MV), vocab, CACHED_ELEMENTS, 1) if on_cpu else [slice(None)]:
            labels = targets_N[rows][part], weights_N[rows][part], denominators.nll
            nll, largest_M1 = _of_labels(logits_MV[part], labels, gradient_MV[part])
            kd = torch.zeros_like(nll)
            given = [own[part] for own in scores]
            if given and (count := len(given[0])):
                student = _soften(logits_MV[part][:count], largest_M1[:count], spec.temperature)
                kd = _of_teachers(student, teachers, given, spec, (gradient_MV[part][:count], scale))
            sums.append(torch.stack([nll, kd]))
        head.add_gradient(rows, gradient_MV)
    nll, kd = torch.stack(sums).sum(dim=0).unbind()
    nll, kd = nll / (denominators.nll or 1.0), kd * spec.temperature**2 / (denominators.kd or 1.0)
    # At weight 0 the term is left out, because 0 times an infinite divergence would be NaN.
    return HeadLoss(nll + factor * kd if factor else nll, nll, kd)


def _scores(teachers: Sequence[Targets], logits_KV: Tensor, at: slice, temperature: float) -> list[Tensor]:
    """Return every teacher's scores for the positions ``at``, which bear distillation, (K, vocab)."""
    scores = [teacher.scores(at, logits_KV, temperature) for teacher in teachers] if at.stop > at.start else []
    check_vocabularies(scores, logits_KV)
    return scores


class _Softened(NamedTuple):
    """A distribution at the temperature of the divergence."""

    scores_MV: Tensor
    """Logits divided by the temperature."""
    probs_MV: Tensor
    total_M1: Tensor
    """Logarithm of the sum of the scores' exponentials."""


def _softmax(scores_MV: Tensor, largest_M1: Tensor, out: Tensor | None = None) -> _Softened:
    """Normalise the scores, of which ``largest_M1`` are the largest of every row. ``out`` receives the probabilities.

    The most likely token has at least the probability 1 / vocab, so the logarithm of its probability is exact, and
    gives the normaliser without another pass of exponentials.
    """
    probs_MV = torch.softmax(scores_MV, dim=-1, out=out)
    return _Softened(scores_MV, probs_MV, largest_M1 - probs_MV.amax(dim=-1, keepdim=True).log_())


def _soften(logits_KV: Tensor, largest_K1: Tensor, temperature: float) -> _Softened:
    return _softmax(logits_KV / temperature, largest_K1 / temperature)


def _of_labels(logits_MV: Tensor, labels: tuple[Tensor, Tensor, float], gradient_MV: Tensor) -> tuple[Tensor, Tensor]:
    """Set ``gradient_MV`` to the gradient of the labels' mean loss.

    Returns the weighted sum of their losses, and every row's largest logit, (M, 1). ``labels``: targets (M,), weights
    (M,) and the denominator of the mean.
    """
    targets_M, weights_M, denominator = labels
    largest_M1 = logits_MV.amax(dim=-1, keepdim=True)
    plain = _softmax(logits_MV, largest_M1, gradient_MV)
    targets_M1 = targets_M[:, None]
    losses_M = (plain.total_M1 - logits_MV.gather(1, targets_M1))[:, 0]
    scale_M1 = (weights_M / (denominator or 1.0))[:, None].to(logits_MV.dtype)
    gradient_MV.mul_(scale_M1).scatter_add_(1, targets_M1, -scale_M1)
    return (losses_M * weights_M).sum(), largest_M1


def _of_teachers(
    student: _Softened,
    teachers: Sequence[Targets],
    scores: Sequence[Tensor],
    spec: ObjectiveSpec,
    gradient: tuple[Tensor, float],
) -> Tensor:
    """Add the divergence's gradient, times a scale, to a tensor; returns the sum of the rows' divergences.

    ``scores``: those of each teacher, (K, vocab), which are overwritten. ``gradient``: the tensor and the scale, 0 for
    none.
    """
    gradient_KV, scale = gradient
    if len(teachers) == 1:
        teacher, may_be_zero = _softmax(scores[0], scores[0].amax(dim=-1, keepdim=True)), teachers[0].may_be_zero
    else:
        teacher, may_be_zero = _mean(scores), True
    if spec.direction == "reverse":
        return _reverse(student, teacher, gradient_KV, scale)
    if spec.direction != "forward":
        return _mixed(student, teacher, spec.direction, gradient_KV, scale)
    # A difference of scores, not of two sums, so that equal peers give exactly 0.
    differences_KV = teacher.scores_MV.sub_(student.scores_MV)
    if may_be_zero:
        differences_KV.masked_fill_(teacher.probs_MV == 0, 0.0)
    sums_K = torch.linalg.vecdot(teacher.probs_MV, differences_KV)
    if scale:
        gradient_KV.add_(student.probs_MV, alpha=scale).sub_(teacher.probs_MV, alpha=scale)
    return (sums_K + (student.total_M1 - teacher.total_M1)[:, 0]).sum()


def _reverse(student: _Softened, teacher: _Softened, gradient_KV: Tensor, scale: float) -> Tensor:
    """Do the same for KL(student || teacher)."""
    ratios_KV = (student.scores_MV - student.total_M1).sub_(teacher.scores_MV).add_(teacher.total_M1)
    ratios_KV.masked_fill_(student.probs_MV == 0, 0.0)
    divergences_K1 = torch.linalg.vecdot(student.probs_MV, ratios_KV)[:, None]
    if scale:
        gradient_KV.addcmul_(student.probs_MV, ratios_KV.sub_(divergences_K1), value=scale)
    return divergences_K1.sum()


def _mixed(student: _Softened, teacher: _Softened, beta: float, gradient_KV: Tensor, scale: float) -> Tensor:
    """Do the same for the generalised Jensen-Shannon divergence (REFERENCE.md#gkd).

    The derivative with respect to the student's probability of a token is (1 - beta) log(student / mixture): all other
    terms cancel.
    """
    # The logarithm r of teacher / student; where the teacher's probability is 0, so is its part of the mixture.
    ratios_KV = teacher.scores_MV.sub_(student.scores_MV).sub_(teacher.total_M1 - student.total_M1)
    ratios_KV.masked_fill_(teacher.probs_MV == 0, -math.inf)
    # log(mixture / student) = log(1 + beta (exp(r) - 1)), and log(mixture / teacher) the same with -r and 1 - beta. Of
    # the two, the one with the negative exponent cannot overflow, and r = 0 gives exactly 0.
    share_KV = torch.where(ratios_KV > 0, 1 - beta, beta).to(ratios_KV.dtype)
    smaller_KV = share_KV.mul_(torch.expm1(-ratios_KV.abs())).log1p_()
    of_teacher_KV = ratios_KV.clamp(max=0.0).sub_(smaller_KV).masked_fill_(teacher.probs_MV == 0, 0.0)
    of_student_KV = ratios_KV.clamp_(min=0.0).add_(smaller_KV).neg_().masked_fill_(student.probs_MV == 0, 0.0)
    from_student_K1 = torch.linalg.vecdot(student.probs_MV, of_student_KV)[:, None]
    divergences_K = beta * torch.linalg.vecdot(teacher.probs_MV, of_teacher_KV) + (1 - beta) * from_student_K1[:, 0]
    if scale:
        gradient_KV.addcmul_(student.probs_MV, of_student_KV.sub_(from_student_K1), value=scale * (1 - beta))
    return divergences_K.sum()


def _mean(scores: Sequence[Tensor]) -> _Softened:
    """Return the mean of the teachers' distributions, each normalised by itself."""
    probs_KV = torch.softmax(scores[0], dim=-1)
    for other_KV in scores[1:]:
        probs_KV += torch.softmax(other_KV, dim=-1)
    probs_KV /= len(scores)
    return _Softened(probs_KV.log(), probs_KV, torch.zeros_like(probs_KV[:, :1]))
