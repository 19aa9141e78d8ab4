"""The rows of a batch that is decoded: what each has so far, and which of them go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedModel

from ray_l4.learner.engine import Prompt

_DONE_SHARE = 1 / 16
"""Share of rows that are done from which on moving the others pays."""


def positions_of(model: PreTrainedModel) -> int | None:
    """Return the number of positions of a model; None if it has no limit."""
    text = model.config.get_text_config(decoder=True)
    positions: int | None = getattr(text, "max_position_embeddings", None)
    return positions


@dataclass
class Row:
    """A prompt under way."""

    ids: list[int]
    """The prompt, and its continuation so far."""
    left: int
    """Number of tokens that may follow."""
    generator: np.random.Generator
    done: bool = False
    new: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, prompt: Prompt, positions: int | None) -> Row:
        """Begin a row. ``positions``: those of the model, which limit its tokens; None for any number."""
        # The last new token is not given to the model, so it needs no position.
        room = prompt.limit if positions is None else max(1, positions - len(prompt.ids) + 1)
        return cls(list(prompt.ids), min(prompt.limit, room), np.random.default_rng(prompt.seed))

    def take(self, tokens: Sequence[int], end: int | None) -> None:
        """Append tokens up to the end."""
        self.left -= len(tokens)
        if self.done:
            return
        if end in tokens:
            tokens, self.done = tokens[: tokens.index(end)], True
        self.new += tokens
        self.ids += tokens
        self.done |= self.left <= 0


def places(rows: Sequence[Row], always: bool = False) -> list[int]:
    """Return the rows that stay, the last ones in the places of those that leave; all if moving does not pay.

    ``always``: let rows that are done leave in any case. Otherwise one may stay as long as it has positions left.
    """
    going_on = [index for index, row in enumerate(rows) if not row.done]
    done = len(rows) - len(going_on)
    if not done or (not always and going_on and done < _DONE_SHARE * len(rows) and all(row.left > 0 for row in rows)):
        return list(range(len(rows)))
    count = len(going_on)
    movers = [index for index in going_on if index >= count]
    return [movers.pop() if rows[index].done else index for index in range(count)]
