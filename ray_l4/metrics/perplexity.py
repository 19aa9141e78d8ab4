"""Perplexity from the negative log-likelihood of a text (REFERENCE.md#perplexity)."""

from __future__ import annotations

import math


def perplexity(nll: float, predicted: int) -> float:
    """Return exp(nll / predicted); infinity where a float cannot hold it.

    Args:
        nll: negative log-likelihood of all predicted tokens together, in nats.
        predicted: their number, at least 1.
    """
    try:
        return math.exp(nll / predicted)
    except OverflowError:
        return math.inf
