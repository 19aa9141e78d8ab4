"""O-LoRA's guard: every stage trains its own part of the adapters, orthogonal to those of earlier stages.

Source: REFERENCE.md#o-lora.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ray_l4.errors import ModelError
from ray_l4.learner.adapters import INPUT_SIDE, OUTPUT_SIDE
from ray_l4.learner.guard_context import GuardContext
from ray_l4.losses.importance import trainable
from ray_l4.losses.orthogonality import overlap


class SubspaceGuard:
    """Confines a step to the stage's block of the adapters: ``rank`` rows of every A, and as many columns of every B.

    The gradients of all other blocks become exactly zero. As the optimiser is fresh at every stage and has no weight
    decay, they do not change: those of earlier stages stay as they were learned, and those of later ones have no effect
    yet, as their part of B is zero. The rows of new tokens are trained as usual.
    """

    def restrain(self, context: GuardContext, step: int) -> Tensor:
        strength = context.experiment.regulariser.weight
        block = _block(context)
        total = torch.zeros((), device=context.device)
        for name, parameter in sorted(trainable(context.model).items()):
            if parameter.grad is None:
                continue
            if INPUT_SIDE in name:
                value, gradient_RD = overlap(parameter[: block.start], parameter[block])
                parameter.grad[block].add_(gradient_RD, alpha=strength)
                total = total + value
                _clear_all_but(block, parameter.grad)
            elif OUTPUT_SIDE in name:
                _clear_all_but(block, parameter.grad.T)
        return strength * total

    def after_stage(self, context: GuardContext) -> None:
        """Do nothing: the adapters are all that the next stage needs."""

    def to_bytes(self) -> np.ndarray | None:
        return None

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        """Do nothing: there is no state."""


def _block(context: GuardContext) -> slice:
    """Return the rows of A that the stage trains. Raises ModelError if there are none for it."""
    lora = context.experiment.model.lora
    subspaces = 0 if lora is None else lora.subspaces or 1
    if lora is None or context.stage >= subspaces:
        raise ModelError(
            f"peer {context.peer}, stage {context.stage}: the adapters have {subspaces} subspaces, one for each stage; "
            "expected more (model.lora.subspaces)"
        )
    return slice(context.stage * lora.rank, (context.stage + 1) * lora.rank)


def _clear_all_but(block: slice, gradient_RD: Tensor) -> None:
    """Set all rows of a gradient, or of a view of it, to zero but those of ``block``."""
    gradient_RD[: block.start].zero_()
    gradient_RD[block.stop :].zero_()
