"""Least squares: how fast a figure grows, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Slope(NamedTuple):
    """Growth, with its standard error."""

    value: float
    error: float


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Return the least-squares slope of ``y`` over ``x`` and its standard error; NaN where it is not determined."""
    n = len(x)
    mean_x, mean_y = sum(x) / max(n, 1), sum(y) / max(n, 1)
    spread = sum((a - mean_x) ** 2 for a in x)
    if n < 3 or spread == 0:
        return Slope(math.nan, math.nan)
    value = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean_y - value * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return Slope(value, math.sqrt(rest / (n - 2) / spread))
