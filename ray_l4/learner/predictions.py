"""A peer's predictions for the batch of one step: the input of every codec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ray_l4.errors import PeerError
from ray_l4.losses.output_product import output_logits
from ray_l4.losses.targets import DenseTargets


@dataclass(frozen=True)
class OutputLayer:
    """The layer that maps hidden states to logits: ``hidden @ weight.T + bias``."""

    weight_VD: Tensor
    """In the type of the model's matrix products."""
    bias_V: Tensor | None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits (N, vocab) of hidden states (N, width), without a graph."""
        return output_logits(hidden_ND, self.weight_VD, self.bias_V)


class ComputedLogits(Mapping[str, Tensor]):
    """Head -> logits, computed when they are first asked for: not every codec sends them.

    They may be asked for until the model's weights change. After that, ``__getitem__`` raises PeerError for those that
    have not been computed.
    """

    def __init__(self, hidden: Mapping[str, Tensor], layer: OutputLayer) -> None:
        """``hidden``: head -> (K, width)."""
        self._hidden = hidden
        self._layer: OutputLayer | None = layer
        self.computed: dict[str, Tensor] = {}
        """Those that were asked for."""

    def __getitem__(self, head: str) -> Tensor:
        if head not in self.computed:
            if self._layer is None:
                raise PeerError(f"the logits of head {head} were asked for after the update of their step")
            self.computed[head] = self._layer.logits(self._hidden[head])
        return self.computed[head]

    def expire(self) -> None:
        """Compute no more logits, because the weights are about to change."""
        self._layer = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._hidden)

    def __len__(self) -> int:
        return len(self._hidden)


@dataclass(frozen=True)
class Predictions:
    """Predictions at the K positions of each head that bear distillation, detached from the graph.

    The hidden states and the output layer may share memory with the model: copy them to keep them beyond the update of
    the step. The logits share none and are never written to.
    """

    logits: Mapping[str, Tensor] = field(default_factory=dict)
    """Head -> (K, vocab), at temperature 1."""
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """Head -> (K, width), the inputs of the output layer; empty if ``output`` is None."""
    output: OutputLayer | None = None
    """The output layer; None as for ``PositionLogits.output_layer``."""

    @property
    def num_logits(self) -> int:
        """The number of logits of all heads, whether they have been computed or not."""
        if self.output is None:
            return sum(logits_KV.numel() for logits_KV in self.logits.values())
        return sum(len(hidden_KD) for hidden_KD in self.hidden.values()) * len(self.output.weight_VD)

    def log_probs(self, head: str) -> Tensor:
        """Return the log-probabilities at a head's positions: (K, vocab), float32."""
        return torch.log_softmax(self.logits[head].float(), dim=-1)

    def targets(self) -> dict[str, DenseTargets]:
        """Return head -> the predictions as exact targets."""
        return {head: DenseTargets(self.logits[head].float()) for head in self.logits}


NOTHING = Predictions()
"""Predictions of a peer that teaches nobody."""
