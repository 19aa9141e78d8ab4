"""One scored example: what a model said and what it should have said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A prediction beside its references, as plain data.

    ``sample_id`` names the example in messages and tells dialogues apart; ``meta`` is a JSON string with whatever
    else the task's metric needs (``ray_l4.metrics.sql``), empty for all others.
    """

    prediction: str
    references: tuple[str, ...]
    sample_id: str
    meta: str = ""


def percentage(values: Iterable[float]) -> float:
    """The mean of values in [0, 1] (or of truth values), times 100. There must be at least one."""
    numbers = list(values)
    return 100.0 * sum(numbers) / len(numbers)
