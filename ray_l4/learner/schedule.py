"""The learning rate of a step, a pure function of the samples consumed before it (REFERENCE.md#schedule)."""

from __future__ import annotations

import math

from ray_l4.config.experiment import OptimConfig


def learning_rate(samples_seen: int, num_samples: int, epochs: int, config: OptimConfig) -> float:
    """Learning rate of the step before which ``samples_seen`` samples of the stage were consumed (REFERENCE.md#schedule).

    num_samples: samples of one epoch, replayed ones included. The rate rises from 0 over the first
    ``floor(config.warmup * num_samples)`` samples, then falls on a line that would reach 0 one warm-up *after* the
    stage's end. The first step of a stage with a warm-up therefore runs at rate 0, and the last value is not 0.

    Raises ValueError if ``samples_seen`` is not within the stage.
    """
    total = num_samples * epochs
    if total < 1 or not 0 <= samples_seen <= total:
        raise ValueError(
            f"learning rate asked for after {samples_seen} samples of a stage of {num_samples} samples x {epochs} "
            f"epochs; expected at least one sample and a position from 0 to {total}"
        )
    warmup = math.floor(config.warmup * num_samples)
    if warmup > 0 and samples_seen <= warmup:
        return config.lr * samples_seen / warmup
    return config.lr * (total - (samples_seen - warmup)) / total
