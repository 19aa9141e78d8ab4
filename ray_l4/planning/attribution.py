"""Hooks that tell a memory trace the purpose of what a model and its optimiser allocate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ray_l4.planning.memory_trace import MemoryTrace


def attribute_model(model: Any, trace: MemoryTrace) -> None:
    """Attribute the weights and gradients of ``model``, and all that its forward and backward passes allocate."""

    head = model.get_output_embeddings()

    def after_base(module: nn.Module, inputs: Any, outputs: Any) -> None:
        trace.begin("loss")
        if outputs.last_hidden_state.requires_grad:
            outputs.last_hidden_state.register_hook(before_backward)

    def before_backward(gradient: Tensor) -> None:
        trace.begin("backward")
        for parameter in head.parameters():  # whose gradients the loss has added (``learner.head_outputs``)
            if parameter.grad is not None:
                trace.assign(parameter.grad, "gradients")

    model.base_model.register_forward_pre_hook(lambda *_: trace.begin("activations"))
    model.base_model.register_forward_hook(after_base)
    head.register_forward_hook(lambda module, inputs, logits: trace.assign(logits, "logits"))
    for parameter in model.parameters():
        trace.assign(parameter, "weights")
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda weight: trace.assign(weight.grad, "gradients"))


def attribute_optimiser(optimizer: torch.optim.Optimizer, trace: MemoryTrace) -> None:
    """Attribute what the updates of ``optimizer`` allocate, its moments included."""
    optimizer.register_step_pre_hook(lambda *_: trace.begin("optimiser"))
    optimizer.register_step_post_hook(lambda *_: trace.begin("loss"))
