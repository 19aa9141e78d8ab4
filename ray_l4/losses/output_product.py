"""The product of hidden states and an output matrix, the largest one of a language model."""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_CACHED_SHAPES = "16"


@torch.no_grad()
def output_logits(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Return ``hidden @ weight.T + bias``, (num_positions, vocab), without a graph, in the type of the weights.

    On a CPU the product is oneDNN's where PyTorch has it: that of MKL, which ``functional.linear`` uses there, runs at
    half the processor's speed for some hundred positions and 50,000 entries (docs/PERFORMANCE.md).
    """
    hidden_ND = hidden_ND.to(weight_VD.dtype)
    if weight_VD.device.type == "cpu" and weight_VD.dtype == torch.float32 and len(hidden_ND) and _has_onednn():
        logits_NV: Tensor = torch.ops.mkldnn._linear_pointwise(hidden_ND, weight_VD, bias_V, "none", [], "")
        return logits_NV
    return functional.linear(hidden_ND, weight_VD, bias_V)


@cache
def _has_onednn() -> bool:
    """Return whether PyTorch has oneDNN, and limit what it keeps unless the user has.

    oneDNN and PyTorch each keep the code for the last 1,024 shapes, half a megabyte for every number of rows. The
    rows of packed batches differ from step to step, so that grew by hundreds of megabytes and was rarely used again.
    Both read their limits at the first product.
    """
    for name in _CACHES:
        os.environ.setdefault(name, _CACHED_SHAPES)
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
