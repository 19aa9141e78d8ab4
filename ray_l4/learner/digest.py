"""A cheap digest of a model's weights, which tells whether two models are equal."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the integer type of that size."""


@torch.no_grad()
def digest(model: nn.Module) -> str:
    """Return a digest of the weights that this process holds: equal if all of them are equal, bit for bit.

    Each tensor counts with its name, its shape and the sum of its bits, read as integers. The sum is computed where the
    tensor is and takes no memory. Equal sums of different weights, though possible, do not happen by accident.
    """
    state = model.state_dict()
    sums = [_sum_of_bits(tensor).cpu() for tensor in state.values()]
    record = [(name, tuple(own.shape), int(total)) for (name, own), total in zip(state.items(), sums, strict=True)]
    return hashlib.blake2b(repr(record).encode(), digest_size=16).hexdigest()


def _sum_of_bits(tensor: Tensor) -> Tensor:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if own.is_complex():
        own = torch.view_as_real(own)
    return own.contiguous().view(_BITS[own.element_size()]).sum(dtype=torch.int64)
