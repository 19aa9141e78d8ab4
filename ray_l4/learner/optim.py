"""The optimiser: AdamW of the reference implementations, or PyTorch's (REFERENCE.md#adamw)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor, nn

from ray_l4.config.experiment import OptimConfig
from ray_l4.errors import ModelError
from ray_l4.learner.buckets import buckets

HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
MOMENTS = ("exp_avg", "exp_avg_sq")

_BUCKET_BYTES = 2**26
"""Size of the weights updated at once: large enough for few calls, small enough for little temporary memory
(for all of GPT-2, the square roots that AdamW computes would take half a gigabyte)."""


class ReferenceAdamW(torch.optim.Optimizer):
    """AdamW of the reference implementations (REFERENCE.md#adamw). With gradient g at a parameter's step t (from 1)::

        m <- beta1 m + (1 - beta1) g;  u <- beta2 u + (1 - beta2) g^2
        theta <- theta - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(u) + eps)
        theta <- theta - lr * weight_decay * theta

    It differs from ``torch.optim.AdamW`` in two ways. eps is added to the root of the *uncorrected* second moment; in
    PyTorch's formula this corresponds to eps / sqrt(1 - beta2^t), 32 times as large at t = 1. And weight decay is
    applied after the step, to the new theta.

    The state has the layout of PyTorch's AdamW. Moments and arithmetic are float32 even for narrower parameters,
    including after ``load_state_dict``. The parameter itself is rounded to its type after every step: bfloat16
    numbers near 0.1 are 0.0005 apart, so such a weight does not move at a learning rate of 6.25e-5.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient. ``closure``, if given, computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameters in buckets(trained, _BUCKET_BYTES):
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                self._update(parameters, gradients, **{key: group[key] for key in HYPERPARAMETERS})
        return loss

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        states = [self._state_of(parameter) for parameter in parameters]
        exp_avg, exp_avg_sq = ([state[moment] for state in states] for moment in MOMENTS)
        # ``to`` does not copy a parameter whose type is already that of the moments: then theta *is* the parameter.
        theta = [parameter.to(moment.dtype) for parameter, moment in zip(parameters, exp_avg, strict=True)]
        gradients = [gradient.to(moment.dtype) for gradient, moment in zip(gradients, exp_avg, strict=True)]
        beta1, beta2 = betas
        torch._foreach_mul_(exp_avg, beta1)
        torch._foreach_add_(exp_avg, gradients, alpha=1 - beta1)
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(exp_avg_sq)
        torch._foreach_add_(roots, eps)
        steps = [int(state["step"]) for state in states]
        step_sizes = [-lr * math.sqrt(1 - beta2**step) / (1 - beta1**step) for step in steps]
        torch._foreach_addcdiv_(theta, exp_avg, roots, step_sizes)
        if weight_decay:
            # Not theta * (1 - lr * decay): rounded to float32 at the default rates, that factor loses 5 % of the decay.
            torch._foreach_add_(theta, theta, alpha=-lr * weight_decay)
        for parameter, updated in zip(parameters, theta, strict=True):
            if updated is not parameter:
                parameter.copy_(updated)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the parameter's state, created at its first step, with its step count incremented."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
        state["step"] += 1
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, keeping the type of the moments; the base class would cast them to that of the parameters."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(saved, parameters, strict=True):
            for moment in MOMENTS if key in state_dict["state"] else ():
                self.state[parameter][moment] = state_dict["state"][key][moment].to(parameter.device)


VARIANTS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "reference": ReferenceAdamW,
    "torch": partial(torch.optim.AdamW, fused=True),
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build an optimiser for the trainable parameters of ``model``, in two groups: with and without weight decay.

    Parameters whose name contains ``bias`` are not decayed; all others are, including layer-norm gains and embeddings.
    A shared parameter (tied embeddings) appears once. Both groups exist even if empty. Source: REFERENCE.md#adamw.

    Raises ModelError if no parameter is trainable.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ModelError(f"{type(model).__name__} has no trainable parameter; expected at least one with requires_grad")
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in trainable.items() if "bias" not in name]},
        {"params": [parameter for name, parameter in trainable.items() if "bias" in name], "weight_decay": 0.0},
    ]
    return VARIANTS[config.variant](
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=config.weight_decay
    )
