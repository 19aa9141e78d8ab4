"""What the three grammars share: word lists and the draw until a context is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ray_l4.errors import DataError

Keep = Callable[[str], bool]
"""Whether a context belongs to the split that is being written."""

FOODS = ("chinese", "italian", "indian", "thai", "french", "spanish", "turkish", "korean")
AREAS = ("north", "south", "east", "west", "centre")
PRICES = ("cheap", "moderate", "pricey")

ATTEMPTS = 10_000
"""One draw in eight is kept at worst; so many failures in a row mean a grammar too small for the split."""

Drawn = TypeVar("Drawn")


def draw_kept(draw: Callable[[], tuple[str, Drawn]], keep: Keep) -> tuple[str, Drawn]:
    """Draw (context, anything) until the context is kept.

    Raises:
        DataError: no context was kept in ``ATTEMPTS`` draws.
    """
    for _ in range(ATTEMPTS):
        context, rest = draw()
        if keep(context):
            return context, rest
    raise DataError(
        f"No context of the embedded grammar fell into this split in {ATTEMPTS} draws; use another data.seed."
    )
