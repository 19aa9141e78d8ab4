"""Operators with the memory that they take on a GPU, for tensors that are on the CPU by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class GpuOperators(TorchFunctionMode):
    """While active, attention keeps no matrix of its weights, and dropout keeps a mask of one byte per element."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            options["dropout_p"] = 0.0
        if func is functional.dropout:
            return _masked_dropout(*args, **options)
        return func(*args, **options)


def gpu_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a layer's forward pass and of its repetition in the backward pass.

    PyTorch runs a backward pass with ``GpuOperators`` switched off; repeated operators would differ from the first.
    """
    return nullcontext(), GpuOperators()


def _masked_dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(values, p, True)[0] if training and p > 0 else values


def update_together(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser of PyTorch update all weights together, its default on a GPU, with more working memory."""
    for group in optimizer.param_groups:
        if "foreach" in group:
            group["foreach"] = True
