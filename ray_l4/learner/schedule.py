"""Learning-rate schedule: a function of the number of examples learned before a step (REFERENCE.md#schedule)."""

from __future__ import annotations

import math

from ray_l4.config.experiment import OptimConfig


def learning_rate(examples_seen: int, num_examples: int, epochs: int, config: OptimConfig) -> float:
    """Return the learning rate of the step that follows the first ``examples_seen`` examples of a stage.

    ``num_examples``: examples per epoch, replayed ones included. The rate rises linearly from 0 over the first
    ``floor(config.warmup * num_examples)`` examples, then falls along a line that would reach 0 one warm-up *after* the
    end of the stage. So a stage with a warm-up starts at rate 0, and its last rate is above 0.

    Raises ValueError if ``examples_seen`` is outside the stage. Source: REFERENCE.md#schedule.
    """
    total = num_examples * epochs
    if total < 1 or not 0 <= examples_seen <= total:
        raise ValueError(
            f"learning rate requested after {examples_seen} examples of a stage of {num_examples} examples x {epochs} "
            f"epochs; expected at least one example and a position from 0 to {total}"
        )
    warmup = math.floor(config.warmup * num_examples)
    if warmup > 0 and examples_seen <= warmup:
        return config.lr * examples_seen / warmup
    return config.lr * (total - (examples_seen - warmup)) / total
