"""A teacher's predictions for the positions of a head, as targets for a student, in the form that the codec sends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ray_l4.losses.nll import at_least_float32
from ray_l4.losses.output_product import output_logits


class Targets(ABC):
    """One teacher's predictions for the K distilled positions of a head, independent of how they were sent."""

    may_be_zero: ClassVar[bool] = False
    """Whether a token may have probability 0, and hence the logarithm minus infinity."""

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """Number of positions, K."""

    @abstractmethod
    def scores(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Return the teacher's log-probabilities at ``temperature``, up to a constant for each of M positions.

        (M, vocab), float32 or wider, which the caller may overwrite.

        Args:
            rows: the positions.
            student_logits_MV: the student's logits at these positions, at temperature 1 and detached; used by targets
                that contain only part of the vocabulary.
            temperature: temperature of the divergence.

        Raises:
            ValueError: the targets were computed at another temperature.
        """

    def log_probs(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Return the teacher's log-probabilities, (M, vocab); arguments and errors as ``scores``."""
        return torch.log_softmax(self.scores(rows, student_logits_MV, temperature), dim=-1)


def softened(logits_MV: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities at ``temperature``, (rows, vocab), float32 or wider.

    A constant added to a row of ``logits_MV`` does not change the result.
    """
    return torch.log_softmax(at_least_float32(logits_MV) / temperature, dim=-1)


@dataclass(frozen=True)
class DenseTargets(Targets):
    """Log-probabilities (K, vocab) at temperature 1, up to a constant per row: logits, for example."""

    log_probs_KV: Tensor

    @property
    def num_positions(self) -> int:
        """Number of positions, K."""
        return len(self.log_probs_KV)

    def scores(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Soften the rows."""
        return at_least_float32(self.log_probs_KV[rows]) / temperature


@dataclass(frozen=True)
class FactoredTargets(Targets):
    """Hidden states and the output layer. Their product is computed only for the rows requested."""

    hidden_KD: Tensor
    """(K, width)."""
    weight_VD: Tensor
    """(vocab, width)."""
    bias_V: Tensor | None
    """(vocab,), if the layer has a bias."""

    @property
    def num_positions(self) -> int:
        """Number of positions, K."""
        return len(self.hidden_KD)

    def scores(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Compute the logits of the rows and soften them."""
        return at_least_float32(output_logits(self.hidden_KD[rows], self.weight_VD, self.bias_V)).div_(temperature)


@dataclass(frozen=True)
class TopKTargets(Targets):
    """The largest log-probabilities of each position at a temperature, and the total of all other tokens (the tail).

    The teacher's tail mass R is distributed like the student's own tail: t_v = R q_v / Q, with Q the student's tail
    mass. The tail then contributes sum_v t_v log(t_v / q_v) = R log(R / Q) to KL(t || q), and Q log(Q / R) to
    KL(q || t): in both directions the result is the divergence over entries + 1 outcomes. Its derivative at a tail
    logit is q_v - R q_v / Q = q_v - t_v, or q_v (log(Q / R) - KL(q || t)), which is what the dense loss computes with t
    held constant. A KL truncated to the k largest tokens would instead pull the student's whole tail to zero.
    """

    ids_KJ: Tensor
    """(K, entries) token ids."""
    log_probs_KJ: Tensor
    """(K, entries) log-probabilities."""
    rest_K: Tensor
    """(K,) log of the tail mass R; minus infinity if there is no tail."""
    temperature: float
    may_be_zero: ClassVar[bool] = True

    @property
    def num_positions(self) -> int:
        """Number of positions, K."""
        return len(self.ids_KJ)

    def scores(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Return the known entries, with the tail mass distributed over all others in the student's proportions."""
        _require_equal(self.temperature, temperature)
        ids_MJ = self.ids_KJ[rows].long()
        tail_MV = softened(student_logits_MV.scatter(-1, ids_MJ, -math.inf), temperature)
        # Where every token is known there is no tail: its NaNs are all overwritten.
        known_MJ = self.log_probs_KJ[rows].to(tail_MV.dtype)
        return tail_MV.add_(self.rest_K[rows, None]).scatter_(-1, ids_MJ, known_MJ)


@dataclass(frozen=True)
class SampledTargets(Targets):
    """Tokens drawn from the teacher's distribution at a temperature, each with an equal share of the probability.

    Tokens that were not drawn have probability 0, so these targets are only usable for KL(teacher || student).
    """

    ids_KS: Tensor
    """(K, draws) token ids, with repetitions."""
    temperature: float
    may_be_zero: ClassVar[bool] = True

    @property
    def num_positions(self) -> int:
        """Number of positions, K."""
        return len(self.ids_KS)

    def scores(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Return the log of each token's share of the draws."""
        _require_equal(self.temperature, temperature)
        ids_MS = self.ids_KS[rows].long()
        counts_MV = torch.zeros_like(at_least_float32(student_logits_MV))
        ones_MS = torch.ones_like(ids_MS, dtype=counts_MV.dtype)
        shares_MS = counts_MV.scatter_add_(-1, ids_MS, ones_MS).gather(-1, ids_MS) / ids_MS.shape[-1]
        # Logarithms are computed only for the few tokens drawn.
        return counts_MV.fill_(-math.inf).scatter_(-1, ids_MS, shares_MS.log())


@dataclass(frozen=True)
class ProbabilityTargets(Targets):
    """Probabilities (K, vocab) at a temperature, up to a factor per position; some may be 0."""

    probs_KV: Tensor
    temperature: float
    may_be_zero: ClassVar[bool] = True

    @property
    def num_positions(self) -> int:
        """Number of positions, K."""
        return len(self.probs_KV)

    def scores(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Normalise the probabilities and return their logarithms."""
        _require_equal(self.temperature, temperature)
        probs_MV = at_least_float32(self.probs_KV[rows])
        return (probs_MV / probs_MV.sum(dim=-1, keepdim=True)).log_()


def _require_equal(taken: float, asked: float) -> None:
    if taken != asked:
        raise ValueError(f"these targets were computed at temperature {taken:g}; they cannot be converted to {asked:g}")
