"""What a teacher says about the positions of a head, as targets for a student: one small type, whatever was sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.losses.nll import at_least_float32


class Targets(Protocol):
    """One teacher's predictions for the K distilled positions of a head. The loss does not know how they travelled."""

    @property
    def num_positions(self) -> int:
        """K."""

    def log_probs(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """The teacher's log-probabilities at ``temperature`` for M of the positions: (M, vocab), float32 or wider.

        student_logits_MV: the student's own logits there, at temperature 1 and without a graph, for targets that know
        only a part of the vocabulary. Raises ValueError if the targets were taken at another temperature.
        """


def softened(logits_MV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at ``temperature``, (rows, vocab), float32 or wider; a constant added to a row is nothing."""
    return torch.log_softmax(at_least_float32(logits_MV) / temperature, dim=-1)


@dataclass(frozen=True)
class DenseTargets:
    """Log-probabilities (K, vocab) at temperature 1; a constant added to a row changes nothing."""

    log_probs_KV: Tensor

    @property
    def num_positions(self) -> int:
        """K."""
        return len(self.log_probs_KV)

    def log_probs(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Those of the rows, softened."""
        return softened(self.log_probs_KV[rows], temperature)


@dataclass(frozen=True)
class FactoredTargets:
    """Hidden states and the output layer they go through. The product is taken for the rows asked for, and no others.

    hidden_KD: (K, width). weight_VD: (vocab, width). bias_V: (vocab,), if the layer has one.
    """

    hidden_KD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None

    @property
    def num_positions(self) -> int:
        """K."""
        return len(self.hidden_KD)

    def log_probs(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """The logits of the rows, softened."""
        return softened(functional.linear(self.hidden_KD[rows], self.weight_VD, self.bias_V), temperature)


@dataclass(frozen=True)
class TopKTargets:
    """The largest log-probabilities of each position at a temperature, and that of all other tokens together.

    ids_KJ, log_probs_KJ: (K, entries). rest_K: log of the mass R of the other tokens; minus infinity if there is none.

    The mass of the others is spread as the student's own tail, t_v = R q_v / Q with Q the student's mass there. Then
    the tail adds sum_v t_v log(t_v / q_v) = R log(R / Q) to KL(t || q), and Q log(Q / R) to KL(q || t): in both
    directions the divergence over entries + 1 outcomes. Its slope at a tail logit is q_v - R q_v / Q = q_v - t_v, or
    q_v (log(Q / R) - KL(q || t)): what the dense loss computes with t held constant. A KL cut off at the k largest
    would instead pull the student's whole tail to zero.
    """

    ids_KJ: Tensor
    log_probs_KJ: Tensor
    rest_K: Tensor
    temperature: float

    @property
    def num_positions(self) -> int:
        """K."""
        return len(self.ids_KJ)

    def log_probs(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """The known entries, and the rest spread over all others in the student's proportions."""
        _require_equal(self.temperature, temperature)
        ids_MJ = self.ids_KJ[rows].long()
        tail_MV = softened(student_logits_MV.scatter(-1, ids_MJ, -math.inf), temperature)
        # Where every token is known there is no tail, and no number in it; all of it is written over.
        known_MJ = self.log_probs_KJ[rows].to(tail_MV.dtype)
        return tail_MV.add_(self.rest_K[rows, None]).scatter_(-1, ids_MJ, known_MJ)


@dataclass(frozen=True)
class SampledTargets:
    """Tokens drawn from the teacher's distribution at a temperature: each draw is an equal share of the probability.

    ids_KS: (K, draws), the same token perhaps several times. Tokens that were not drawn have probability 0, so these
    targets serve KL(teacher || student) alone.
    """

    ids_KS: Tensor
    temperature: float

    @property
    def num_positions(self) -> int:
        """K."""
        return len(self.ids_KS)

    def log_probs(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Log of each token's share of the draws."""
        _require_equal(self.temperature, temperature)
        ids_MS = self.ids_KS[rows].long()
        counts_MV = torch.zeros_like(at_least_float32(student_logits_MV))
        ones_MS = torch.ones_like(ids_MS, dtype=counts_MV.dtype)
        shares_MS = counts_MV.scatter_add_(-1, ids_MS, ones_MS).gather(-1, ids_MS) / ids_MS.shape[-1]
        # Only the drawn ones have a logarithm to be taken, of which there are few.
        return counts_MV.fill_(-math.inf).scatter_(-1, ids_MS, shares_MS.log())


@dataclass(frozen=True)
class ProbabilityTargets:
    """Probabilities (K, vocab) at a temperature, up to a factor for each position; some may be 0."""

    probs_KV: Tensor
    temperature: float

    @property
    def num_positions(self) -> int:
        """K."""
        return len(self.probs_KV)

    def log_probs(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """Their logarithms, once they sum to 1."""
        _require_equal(self.temperature, temperature)
        probs_MV = at_least_float32(self.probs_KV[rows])
        return (probs_MV / probs_MV.sum(dim=-1, keepdim=True)).log_()


def _require_equal(taken: float, asked: float) -> None:
    if taken != asked:
        raise ValueError(f"these targets were taken at temperature {taken:g}; they cannot be had at {asked:g}")
