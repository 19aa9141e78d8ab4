"""What a learner says about a step's batch, in the form from which every codec can take what it sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ray_l4.losses.targets import DenseTargets


@dataclass(frozen=True)
class OutputLayer:
    """The product that turns hidden states into logits: ``hidden @ weight.T + bias``."""

    weight_VD: Tensor
    bias_V: Tensor | None


@dataclass(frozen=True)
class Predictions:
    """Predictions at the K positions of each head that bear distillation, without a graph.

    They share memory with the model: whoever keeps them beyond the step's update has to copy them.
    """

    logits: Mapping[str, Tensor] = field(default_factory=dict)
    """Head -> (K, vocab), at temperature 1."""
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """Head -> (K, width), what the output layer makes the logits of; empty for a model that does more than that."""
    output: OutputLayer | None = None
    """Where ``hidden`` is not empty."""

    def log_probs(self, head: str) -> Tensor:
        """Log-probabilities of a head's positions, (K, vocab), float32."""
        return torch.log_softmax(self.logits[head].float(), dim=-1)

    def targets(self) -> dict[str, DenseTargets]:
        """Head -> the same as exact targets."""
        return {head: DenseTargets(self.log_probs(head)) for head in self.logits}


NOTHING = Predictions()
"""What a peer sends that nobody learns from."""
