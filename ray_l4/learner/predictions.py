"""A peer's predictions for the batch of one step: the input of every codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ray_l4.losses.targets import DenseTargets


@dataclass(frozen=True)
class OutputLayer:
    """The layer that maps hidden states to logits: ``hidden @ weight.T + bias``."""

    weight_VD: Tensor
    bias_V: Tensor | None


@dataclass(frozen=True)
class Predictions:
    """Predictions at the K positions of each head that bear distillation, detached from the graph.

    The tensors may share memory with the model: copy them to keep them beyond the update of the step.
    """

    logits: Mapping[str, Tensor] = field(default_factory=dict)
    """Head -> (K, vocab), at temperature 1."""
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """Head -> (K, width), the inputs of the output layer; empty if ``output`` is None."""
    output: OutputLayer | None = None
    """The output layer; None as for ``PositionLogits.output_layer``."""

    def log_probs(self, head: str) -> Tensor:
        """Return the log-probabilities at a head's positions: (K, vocab), float32."""
        return torch.log_softmax(self.logits[head].float(), dim=-1)

    def targets(self) -> dict[str, DenseTargets]:
        """Return head -> the predictions as exact targets."""
        return {head: DenseTargets(self.log_probs(head)) for head in self.logits}


NOTHING = Predictions()
"""Predictions of a peer that teaches nobody."""
