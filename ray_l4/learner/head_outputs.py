"""A model's outputs at one head's positions, as rows of logits whose gradient goes back into the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_l4.learner.predictions import OutputLayer


@dataclass
class HiddenRows:
    """Hidden states and the output layer: logits exist for a few rows at a time only.

    The gradient of the output matrix is summed over the chunks of rows into the parameter's gradient; that of the
    hidden states is what ``roots`` continues the backward pass from. Source: as ``losses.head_gradient``.
    """

    hidden_ND: Tensor
    """(N, width), with its graph."""
    layer: OutputLayer
    module: nn.Linear
    """The layer's parameters."""
    weight: float = 1.0
    """Weight of the head in the student's objective."""
    known_KV: Tensor | None = None
    """Logits of the first rows, if a codec has asked for them."""
    _gradient_ND: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.hidden_ND), len(self.layer.weight_VD)

    def logits(self, rows: slice) -> Tensor:
        known_KV = self.known_KV
        if known_KV is None or rows.start >= len(known_KV):
            return self.layer.logits(self.hidden_ND.detach()[rows])
        if rows.stop <= len(known_KV):
            return known_KV[rows]
        rest_MV = self.layer.logits(self.hidden_ND.detach()[len(known_KV) : rows.stop])
        return torch.cat([known_KV[rows], rest_MV])

    @torch.no_grad()
    def add_gradient(self, rows: slice, gradient_MV: Tensor) -> None:
        """Take the gradient of some rows; every row is given once."""
        if self._gradient_ND is None:
            self._gradient_ND = torch.zeros_like(self.hidden_ND)
        weight_VD = self.layer.weight_VD
        narrow_MV = gradient_MV.mul_(self.weight).to(weight_VD.dtype)
        if self.hidden_ND.requires_grad:
            self._gradient_ND[rows] = (narrow_MV @ weight_VD).to(self.hidden_ND.dtype)
        if self.module.weight.requires_grad:
            _add_product(self.module.weight, narrow_MV, self.hidden_ND.detach()[rows].to(weight_VD.dtype))
        if self.module.bias is not None and self.module.bias.requires_grad:
            _add(self.module.bias, gradient_MV.sum(dim=0))

    def whole(self) -> Tensor:
        """Return the logits of all rows, (N, vocab), with their graph."""
        logits_NV: Tensor = self.module(self.hidden_ND)
        return logits_NV

    def roots(self) -> tuple[Tensor, Tensor]:
        """Return the tensor from which the backward pass goes on, and its gradient."""
        gradient_ND = self._gradient_ND
        return self.hidden_ND, torch.zeros_like(self.hidden_ND) if gradient_ND is None else gradient_ND


def _add_product(parameter: Tensor, gradient_MV: Tensor, hidden_MD: Tensor) -> None:
    """Add ``gradient_MV.T @ hidden_MD`` to the gradient of a matrix (vocab, width), in place if it has one."""
    same = gradient_MV.dtype == hidden_MD.dtype == parameter.dtype
    if parameter.grad is not None and same:
        parameter.grad.addmm_(gradient_MV.T, hidden_MD)
    else:
        _add(parameter, gradient_MV.T @ hidden_MD)


def _add(parameter: Tensor, gradient: Tensor) -> None:
    gradient = gradient.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


@dataclass
class WholeLogits:
    """The logits of all rows, of a model that computes them by itself."""

    logits_NV: Tensor
    """(N, vocab), with their graph."""
    weight: float = 1.0
    """Weight of the head in the student's objective."""
    _gradient_NV: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, vocab = self.logits_NV.shape
        return rows, vocab

    def logits(self, rows: slice) -> Tensor:
        return self.logits_NV.detach()[rows]

    def add_gradient(self, rows: slice, gradient_MV: Tensor) -> None:
        """Take the gradient of some rows; every row is given once."""
        if self._gradient_NV is None:
            self._gradient_NV = torch.zeros_like(self.logits_NV)
        self._gradient_NV[rows] = gradient_MV.mul_(self.weight)

    def whole(self) -> Tensor:
        """Return the logits of all rows, (N, vocab), with their graph."""
        return self.logits_NV

    def roots(self) -> tuple[Tensor, Tensor]:
        """Return the tensor from which the backward pass goes on, and its gradient."""
        gradient_NV = self._gradient_NV
        return self.logits_NV, torch.zeros_like(self.logits_NV) if gradient_NV is None else gradient_NV


HeadOutputs = HiddenRows | WholeLogits


def continue_backward(heads: Sequence[HeadOutputs]) -> None:
    """Run the backward pass of the model, once all rows have been given their gradient."""
    # Hidden states have no graph if all weights before the output layer are frozen.
    roots = [(tensor, gradient) for tensor, gradient in (head.roots() for head in heads) if tensor.requires_grad]
    if roots:
        torch.autograd.backward([tensor for tensor, _ in roots], [gradient for _, gradient in roots])
