"""Dropout on a CPU with masks that cost a fifth of PyTorch's.

PyTorch draws one number per element of a mask there, which took an eighth of a small model's step. Here a draw of 64
bits serves four elements. All draws come from PyTorch's default generator, so seeds, and activations that are computed
again in the backward pass, work as ever.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEVELS = 2**16
"""A rate is rounded to a multiple of 1 / 65,536."""


def keep_mask(shape: torch.Size | tuple[int, ...], rate: float) -> tuple[Tensor, float]:
    """Draw a mask on the CPU: a bool tensor of ``shape``, False with probability ``rate``.

    Returns the mask and the factor by which to multiply what is kept, so that the expectation stays the same.
    """
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    count = torch.Size(shape).numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[:count].view(shape) >= dropped - _LEVELS // 2
    return keep, _LEVELS / (_LEVELS - dropped)


class Dropout(nn.Dropout):
    """``nn.Dropout`` with :func:`keep_mask` on a CPU, and PyTorch's own kernel elsewhere."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or values.device.type != "cpu":
            return functional.dropout(values, self.p, self.training)
        keep, factor = keep_mask(values.shape, self.p)
        return (values * keep).mul_(factor)


def use_cheap_masks(model: nn.Module) -> None:
    """Let all dropout layers of ``model`` use :class:`Dropout`."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed PyTorch's default generators on the CPU and on ``device``.

    ``torch.manual_seed`` does the same for all devices, but on a machine without GPUs it formats a stack trace at every
    call, in case there will be GPUs later.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
