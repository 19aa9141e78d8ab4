"""Draws from a guard's memory: which stored examples a step looks at, and the model's logits on them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from torch import Tensor

from ray_l4.learner.dropout import seed_generators
from ray_l4.learner.guard_context import GuardContext
from ray_l4.methods import peer_seed
from ray_l4.seeds import derive


def drawn_rows(context: GuardContext, memory: pa.Table, step: int, purpose: str) -> np.ndarray:
    """Draw as many rows of ``memory`` as the step's batch holds, at most all of them, without replacement.

    Draws of other ``purpose`` are independent; all students draw the same rows.
    """
    generator = np.random.default_rng(derive(context.experiment.seed, purpose, context.stage, step))
    size = min(context.num_examples(step), memory.num_rows)
    return generator.choice(memory.num_rows, size=size, replace=False)


def drawn_logits(
    context: GuardContext, memory: pa.Table, rows: np.ndarray, step: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Run the model, keeping the graph; returns what ``GuardContext.answer_logits`` does of ``rows``.

    Dropout has a seed of its own, because students that share this process also advance the generator.
    """
    seed = peer_seed(context.experiment, context.peer)
    seed_generators(derive(seed, f"{purpose} dropout", context.peer, context.stage, step), context.device)
    return context.answer_logits(memory, rows)
