"""An item to score: a prediction and its references."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A prediction and the references of its example, as text.

    ``sample_id`` identifies the example in messages, and the dialogue of a turn. ``meta`` is a JSON string with further
    data for metrics that need it (``ray_l4.metrics.sql``), or empty.
    """

    prediction: str
    references: tuple[str, ...]
    sample_id: str
    meta: str = ""


def percentage(values: Iterable[float]) -> float:
    """Return the mean of values in [0, 1] or of booleans, times 100. There must be at least one value."""
    numbers = list(values)
    return 100.0 * sum(numbers) / len(numbers)
