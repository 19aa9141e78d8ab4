"""Plain twins of the losses: double loops over Python floats with hand-derived gradients, slow and obvious."""

from __future__ import annotations

import math

import torch
from hypothesis import settings
from torch import Tensor

# Half a unit in the last place: the relative error of one rounding to the type.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
DTYPES = tuple(ROUNDING)
# Absolute error of a loss, which is computed in float32: some logits are near 50, where its last bit is 4e-6.
LOSS_ERROR = 1e-5

# No deadline: the first call of an operation loads code, and the machine may be busy.
some_examples = settings(max_examples=40, deadline=None)


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    largest = max(logits)
    exponentials = [math.exp((logit - largest) / temperature) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def nll_twin(logits: Tensor, targets: Tensor, weights: Tensor, denominator: float) -> tuple[float, Tensor]:
    """Return value and gradient with respect to the logits; d(-log p_t)/dz_v = p_v - [v = t]."""
    value = 0.0
    gradient = torch.zeros(logits.shape, dtype=torch.float64)
    rows = zip(logits.double().tolist(), targets.tolist(), weights.double().tolist(), strict=True)
    for row, (values, target, weight) in enumerate(rows):
        probs = softmax(values)
        value += weight * -math.log(probs[target]) / denominator
        for v, prob in enumerate(probs):
            gradient[row, v] = weight * (prob - (v == target)) / denominator
    return value, gradient


def mean_probs_twin(teachers: list[Tensor], temperature: float) -> list[list[float]]:
    """Return per position the mean of the teachers' softened probabilities."""
    per_teacher = [[softmax(row, temperature) for row in teacher.double().tolist()] for teacher in teachers]
    return [
        [sum(column) / len(teachers) for column in zip(*rows, strict=True)] for rows in zip(*per_teacher, strict=True)
    ]


def distillation_twin(
    logits: Tensor, teachers: list[Tensor], temperature: float, denominator: float
) -> tuple[float, Tensor]:
    """Return T^2 KL(mean teacher || student) and its gradient, T (q_v - p_v) / denominator."""
    value = 0.0
    gradient = torch.zeros(logits.shape, dtype=torch.float64)
    targets = mean_probs_twin(teachers, temperature)
    for row, (values, target) in enumerate(zip(logits.double().tolist(), targets, strict=True)):
        for v, (p, q) in enumerate(zip(target, softmax(values, temperature), strict=True)):
            value += temperature**2 * (p * math.log(p / q) if p > 0 else 0.0) / denominator
            gradient[row, v] = temperature * (q - p) / denominator
    return value, gradient


def reverse_twin(
    logits: Tensor, teachers: list[Tensor], temperature: float, denominator: float
) -> tuple[float, Tensor]:
    """Return T^2 KL(student || mean teacher) and its gradient, T q_v (log(q_v / p_v) - KL) / denominator."""
    value = 0.0
    gradient = torch.zeros(logits.shape, dtype=torch.float64)
    targets = mean_probs_twin(teachers, temperature)
    for row, (values, target) in enumerate(zip(logits.double().tolist(), targets, strict=True)):
        student = softmax(values, temperature)
        ratios = [math.log(q / p) for p, q in zip(target, student, strict=True)]
        divergence = sum(q * ratio for q, ratio in zip(student, ratios, strict=True))
        value += temperature**2 * divergence / denominator
        for v, (q, ratio) in enumerate(zip(student, ratios, strict=True)):
            gradient[row, v] = temperature * q * (ratio - divergence) / denominator
    return value, gradient


def mixed_twin(
    logits: Tensor, teachers: list[Tensor], temperature: float, denominator: float, beta: float
) -> tuple[float, Tensor]:
    """Return T^2 (beta KL(p || m) + (1 - beta) KL(q || m)) with m = beta p + (1 - beta) q, and its gradient.

    By the chain rule through q, without the terms cancelled: d/dq_v = (1 - beta) (log(q_v / m_v) + 1)
    - (1 - beta) (beta p_v + (1 - beta) q_v) / m_v, and dq_v/dz_u = q_v ([u = v] - q_u) / T.
    """
    value = 0.0
    gradient = torch.zeros(logits.shape, dtype=torch.float64)
    targets = mean_probs_twin(teachers, temperature)
    for row, (values, target) in enumerate(zip(logits.double().tolist(), targets, strict=True)):
        student = softmax(values, temperature)
        mixture = [beta * p + (1 - beta) * q for p, q in zip(target, student, strict=True)]
        slopes = []
        for p, q, m in zip(target, student, mixture, strict=True):
            divergence = beta * p * math.log(p / m) + (1 - beta) * q * math.log(q / m)
            value += temperature**2 * divergence / denominator
            slopes.append((1 - beta) * (math.log(q / m) + 1) - (1 - beta) * (beta * p + (1 - beta) * q) / m)
        mean = sum(q * slope for q, slope in zip(student, slopes, strict=True))
        for v, (q, slope) in enumerate(zip(student, slopes, strict=True)):
            gradient[row, v] = temperature * q * (slope - mean) / denominator
    return value, gradient


def random_logits(rows: int, vocab: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw logits like GPT-2's: far below zero and a few units apart."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, vocab, generator=generator) - 40).to(dtype)


def assert_gradient(actual: Tensor, expected: Tensor, scale: float) -> None:
    """Assert equality up to float32 arithmetic and one rounding to the type of ``actual``.

    scale: factor of a difference of probabilities in the gradient. Near p = 1 that difference has an absolute error.
    """
    rtol = 1e-5 + 1.01 * ROUNDING[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=1e-6 * scale)


class GivenLogits:
    """Rows of logits that exist already, and the gradient that they are given."""

    def __init__(self, logits_NV: Tensor) -> None:
        self._logits_NV = logits_NV.detach()
        self.gradient_NV = torch.full_like(self._logits_NV, torch.nan)

    @property
    def shape(self) -> tuple[int, int]:
        rows, vocab = self._logits_NV.shape
        return rows, vocab

    def logits(self, rows: slice) -> Tensor:
        return self._logits_NV[rows]

    def add_gradient(self, rows: slice, gradient_MV: Tensor) -> None:
        assert bool(self.gradient_NV[rows].isnan().all()), "every row is given once"
        self.gradient_NV[rows] = gradient_MV
