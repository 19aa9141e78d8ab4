"""Hooks that tell a memory trace the purpose of what a model and its optimiser allocate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ray_l4.planning.memory_trace import MemoryTrace


def attribute_model(model: Any, trace: MemoryTrace) -> None:
    """Attribute the weights and gradients of ``model``, and all that its forward and backward passes allocate."""

    def after_head(module: nn.Module, inputs: Any, logits: Tensor) -> None:
        trace.assign(logits, "logits")
        trace.begin("loss")
        if logits.requires_grad:
            logits.register_hook(lambda gradient: trace.begin("backward"))

    model.base_model.register_forward_pre_hook(lambda *_: trace.begin("activations"))
    model.get_output_embeddings().register_forward_hook(after_head)
    for parameter in model.parameters():
        trace.assign(parameter, "weights")
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda weight: trace.assign(weight.grad, "gradients"))


def attribute_optimiser(optimizer: torch.optim.Optimizer, trace: MemoryTrace) -> None:
    """Attribute what the updates of ``optimizer`` allocate, its moments included."""
    optimizer.register_step_pre_hook(lambda *_: trace.begin("optimiser"))
    optimizer.register_step_post_hook(lambda *_: trace.begin("loss"))
