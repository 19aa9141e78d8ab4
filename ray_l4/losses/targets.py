"""What a teacher says about the positions of a head, as targets for a student: one small type, whatever was sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ray_l4.losses.nll import at_least_float32


class Targets(Protocol):
    """One teacher's predictions for the K distilled positions of a head. The loss does not know how they travelled."""

    @property
    def num_positions(self) -> int:
        """K."""

    def log_probs(self, rows: slice, student_logits_MV: Tensor, temperature: float) -> Tensor:
        """The teacher's log-probabilities at ``temperature`` for M of the positions: (M, vocab), float32 or wider.

        student_logits_MV: the student's own logits there, at temperature 1 and without a graph, for targets that know
        only a part of the vocabulary.
        """


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
        return torch.log_softmax(at_least_float32(self.log_probs_KV[rows]) / temperature, dim=-1)
