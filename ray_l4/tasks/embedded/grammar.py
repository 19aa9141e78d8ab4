"""Word lists and rejection sampling shared by the three grammars."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ray_l4.errors import DataError

Keep = Callable[[str], bool]
"""Predicate: does a context belong to the split that is generated?"""

FOODS = ("chinese", "italian", "indian", "thai", "french", "spanish", "turkish", "korean")
AREAS = ("north", "south", "east", "west", "centre")
PRICES = ("cheap", "moderate", "pricey")

ATTEMPTS = 10_000
"""Number of draws before giving up. At least one in eight is kept on average, so reaching it means that the grammar is
too small for the split."""

Drawn = TypeVar("Drawn")


def draw_kept(draw: Callable[[], tuple[str, Drawn]], keep: Keep) -> tuple[str, Drawn]:
    """Draw (context, anything) until ``keep`` accepts the context, and return the pair.

    Raises:
        DataError: no context was kept in ``ATTEMPTS`` draws.
    """
    for _ in range(ATTEMPTS):
        context, rest = draw()
        if keep(context):
            return context, rest
    raise DataError(
        f"None of {ATTEMPTS} contexts drawn from the embedded grammar belongs to this split; use another data.seed."
    )
