"""A batch that rows join and leave between two tokens, for prompts that come one by one.

A row's tokens are those that ``BatchedEngine`` gives its prompt: they depend neither on the other rows nor on when they
come and go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ray_l4.learner.batch_rows import Row, places, positions_of
from ray_l4.learner.cache_memory import bytes_per_token, cache_budget
from ray_l4.learner.decoding_state import DecodingState, MixedLengths, begin
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.model_calls import ModelCalls
from ray_l4.learner.sampling import Chooser

_FIRST_ROOM = 64
"""Columns for new tokens that a batch gets at first, unless its rows need fewer."""


class RollingBatch:
    """Rows under way in one model, which is in evaluation mode, whose tokens are chosen in the same way."""

    def __init__(self, model: PreTrainedModel, decoding: Decoding, cache_bytes: int | None = None) -> None:
        """Begin without rows. ``decoding.end`` is an id. ``cache_bytes``: keys and values at most, unless a single row
        needs more; None for what the device allows."""
        self._calls = ModelCalls.of(model)
        self._positions = positions_of(model)
        self._end = decoding.end
        budget = cache_budget(model.device) if cache_bytes is None else cache_bytes
        self._columns_in_all = budget // bytes_per_token(model.config, model.dtype)
        self._chooser = Chooser(decoding, model.device)
        self._rows: list[Row] = []
        self._state: DecodingState | None = None
        self._tokens_B = torch.zeros(0, dtype=torch.int64, device=model.device)

    def __len__(self) -> int:
        return sum(not row.done for row in self._rows)

    def room_for(self, prompts: Sequence[Prompt]) -> int:
        """Return how many of the first prompts can join now, with all the tokens that they may get.

        One always can if there are no rows. Rows of a model whose state is more than keys and values join only at
        the beginning, and have one length.
        """
        rows = [(len(row.ids), row.left) for row in self._rows if not row.done]
        if not self._calls.padded:
            lengths = [len(prompt.ids) for prompt in prompts]
            alike = next((n for n, length in enumerate(lengths) if length != lengths[0]), len(lengths))
            prompts = [] if rows else prompts[:alike]
        for count, prompt in enumerate(prompts):
            rows.append((len(prompt.ids), prompt.limit))
            longest, most = (max(numbers) for numbers in zip(*rows, strict=True))
            if len(rows) > 1 and len(rows) * (longest + most) > self._columns_in_all:
                return count
        return len(prompts)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Prompt]) -> list[Row]:
        """Run the model on new prompts, for which there is room, and let them go on with the others.

        Returns their rows, in order. Raises ValueError if a prompt has no tokens.
        """
        if not all(len(prompt.ids) for prompt in prompts):
            raise ValueError("a prompt has no tokens")
        joining = [Row.of(prompt, self._positions) for prompt in prompts]
        for row in joining:
            row.done = row.left <= 0
        self._drop_done()
        new = sorted((row for row in joining if not row.done), key=lambda row: -len(row.ids))
        if new:
            state = begin(self._calls, [row.ids for row in new], self._room(new))
            if self._state is None:
                self._state = state
            else:
                assert isinstance(self._state, MixedLengths) and isinstance(state, MixedLengths), "no room for them"
                width = max(self._state.columns, state.columns)
                self._state.join(state, width + self._room([*self._rows, *new]))
            self._rows += new
            last_B = torch.tensor([row.ids[-1] for row in new], device=self._tokens_B.device)
            self._tokens_B = torch.cat([self._tokens_B, last_B])
        return joining

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Add one token to every row; returns these rows. One that is done has left when the next step begins.

        A row leaves early if ``row.done`` is set between two steps.
        """
        self._drop_done()
        if self._state is None:
            return []
        if self._state.columns + 1 > self._state.capacity:
            most = self._state.columns + max(row.left for row in self._rows)
            self._state.grow(min(most, self._state.columns * 3 // 2 + 1))
        noise_1BK = self._chooser.noise([row.generator for row in self._rows], tokens=1)
        logits_BV = self._state.step(self._tokens_B)
        self._tokens_B = self._chooser.choose(logits_BV, None if noise_1BK is None else noise_1BK[0])
        for row, token in zip(self._rows, self._tokens_B.tolist(), strict=True):
            row.take([token], self._end)
        return list(self._rows)

    def _room(self, rows: Sequence[Row]) -> int:
        return min(_FIRST_ROOM, max(row.left for row in rows))

    def _drop_done(self) -> None:
        order = places(self._rows, always=True)
        if len(order) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in order]
        self._tokens_B = self._tokens_B[order]
        if self._rows and self._state is not None:
            self._state.keep(order)
        else:
            self._state = None
