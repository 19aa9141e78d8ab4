"""The uncertainty of a mean by the bootstrap (REFERENCE.md#paired-differences)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_l4.seeds import derive

RESAMPLES = 10_000
FEWEST = 3
"""Smallest number of values that have an interval."""
LEVEL = 0.95
"""Share of the resampled means that an interval holds."""


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean of ``values``; None if there are fewer than ``FEWEST``.

    ``values`` are drawn with replacement ``RESAMPLES`` times, as many as there are; the interval holds the middle
    ``LEVEL`` of the means. The draws depend on the number of values alone, so equal values have equal intervals.
    """
    count = len(values)
    if count < FEWEST:
        return None
    generator = np.random.default_rng(derive(0, "bootstrap of a mean"))
    drawn = generator.integers(count, size=(RESAMPLES, count))
    means = np.asarray(values, dtype=np.float64)[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
