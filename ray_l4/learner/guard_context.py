"""What a guard is, and the part of a stage's state that it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ray_l4.config.experiment import ExperimentConfig


@dataclass(frozen=True)
class GuardContext:
    """The part of a stage's state that guards need."""

    peer: int
    stage: int
    model: PreTrainedModel
    experiment: ExperimentConfig
    tokens: pa.Table
    """All examples of the stage, current and replayed."""
    memory: pa.Table | None
    """Stored examples of earlier tasks."""
    answer_logits: Callable[[pa.Table, np.ndarray], tuple[Tensor, Tensor]]
    """Table of examples, row numbers -> logits (N, vocab) at all N answer tokens, with their graph, and those tokens
    (N,)."""
    num_examples: Callable[[int], int]
    """Step -> number of examples in its batch."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device


class Guard(Protocol):
    """Acts between the backward pass and the update of every step, and after every stage."""

    def restrain(self, context: GuardContext, step: int) -> Tensor:
        """Change the gradients of the model's parameters; returns what this adds to the loss, a scalar."""

    def after_stage(self, context: GuardContext) -> None:
        """Record what the guard needs to know about the task just learned."""

    def to_bytes(self) -> np.ndarray | None:
        """Serialise the guard's state for ``restore``; None if it has none."""

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        """Load what ``to_bytes`` returned. Raises ModelError if it is damaged."""
