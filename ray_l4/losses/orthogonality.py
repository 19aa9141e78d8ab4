"""Overlap of the subspaces that adapters span (O-LoRA, REFERENCE.md#o-lora)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def overlap(earlier_PD: Tensor, current_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the absolute inner products of earlier and current rows, and its gradient.

    Args:
        earlier_PD: the P rows of A of all earlier tasks, constants; P may be 0.
        current_RD: the R rows of A of the current task.

    Returns:
        A scalar, and its gradient with respect to ``current_RD``, (R, D); the gradient of ``|0|`` counts as 0, as in
        autograd.
    """
    products_PR = earlier_PD @ current_RD.T
    return products_PR.abs().sum(), products_PR.sign().T @ earlier_PD
