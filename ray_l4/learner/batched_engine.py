"""The engine of this package: batches that finished rows leave, and that are split where memory ends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ray_l4.learner.adapters import token_rows_merged
from ray_l4.learner.batch_rows import Row, places, positions_of
from ray_l4.learner.cache_memory import bytes_per_token, cache_budget
from ray_l4.learner.decoding_state import DecodingState
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.mean_state import begin_together
from ray_l4.learner.model_calls import ModelCalls
from ray_l4.learner.sampling import Chooser

_GPU_STEPS = 8
"""Steps between two looks at the tokens on a GPU, each of which waits for all work under way."""


@dataclass(frozen=True)
class BatchedEngine:
    """Decode rows of a batch one token at a time, each up to its own end."""

    cache_bytes: int | None = None
    """Keys and values of a batch at most, unless one row needs more; None for what the device allows. A batch begins
    with as many rows as fit then; when they grow beyond it, the last ones wait and are continued later."""
    others: Sequence[ModelCalls] = ()
    """Models on the same device that decode together with the one that ``extend`` is given: each token is chosen from
    the mean of their probabilities. They are in evaluation mode."""

    @torch.inference_mode()
    def extend(self, model: PreTrainedModel, prompts: Sequence[Prompt], decoding: Decoding) -> list[list[int]]:
        """Return the new tokens of every prompt, up to but excluding the first ``decoding.end``."""
        models = [ModelCalls.of(model), *self.others]
        positions = min((own for each in models if (own := positions_of(each.model)) is not None), default=None)
        rows = []
        for index, prompt in enumerate(prompts):
            if not len(prompt.ids):
                raise ValueError(f"prompt {index} has no tokens")
            rows.append(Row.of(prompt, positions))
        waiting = sorted((row for row in rows if row.left > 0), key=lambda row: -len(row.ids))
        batches = _Batches(models, decoding, self.cache_bytes or cache_budget(model.device))
        with ExitStack() as merged:
            for each in models:
                merged.enter_context(token_rows_merged(each.model))
            while waiting:
                batch, waiting = batches.split(waiting)
                waiting = sorted([*waiting, *batches.run(batch)], key=lambda row: -len(row.ids))
        return [row.new for row in rows]


class _Batches:
    """Runs batches of rows through one model, or through several in step."""

    def __init__(self, calls: Sequence[ModelCalls], decoding: Decoding, budget: int) -> None:
        model = calls[0].model
        self._calls = calls
        self._padded = all(own.padded for own in calls)
        self._end = decoding.end
        self._device = model.device
        self._columns_in_all = budget // sum(bytes_per_token(own.model.config, own.model.dtype) for own in calls)
        self._chooser = Chooser(decoding, model.device)
        self._steps = _GPU_STEPS if model.device.type != "cpu" else 1

    def split(self, rows: list[Row]) -> tuple[list[Row], list[Row]]:
        """Return the first rows, which form a batch, and the others; ``rows`` begin with the longest."""
        longest = len(rows[0].ids)
        count = max(1, self._columns_in_all // (longest + self._chooser.block))
        if not self._padded:
            count = min(count, sum(len(row.ids) == longest for row in rows))
        return rows[:count], rows[count:]

    def run(self, rows: list[Row]) -> list[Row]:
        """Decode a batch; returns rows that have to wait."""
        state = begin_together(self._calls, [row.ids for row in rows], self._room(rows))
        tokens_B = torch.tensor([row.ids[-1] for row in rows], device=self._device)
        postponed: list[Row] = []
        while rows:
            fitting = self._make_room(state, rows)
            if fitting < len(rows):
                postponed += [row for row in rows[fitting:] if not row.done]
                rows, tokens_B = rows[:fitting], tokens_B[:fitting]
            rows, tokens_B = self._decode_block(state, rows, tokens_B)
        return postponed

    def _room(self, rows: Sequence[Row]) -> int:
        """Return the number of columns that the next block of tokens takes."""
        return min(self._chooser.block, max(row.left for row in rows))

    def _make_room(self, state: DecodingState, rows: Sequence[Row]) -> int:
        """Get memory for the next block of tokens; returns how many rows stay."""
        needed = state.columns + self._room(rows)
        affordable = self._columns_in_all // len(rows)
        fitting = len(rows) if needed <= affordable else max(1, self._columns_in_all // needed)
        if fitting < len(rows):
            state.keep(range(fitting))
        if needed > state.capacity:
            longest = state.columns + max(row.left for row in rows)
            state.grow(max(needed, min(longest, state.columns * 3 // 2, affordable)))
        return fitting

    def _decode_block(self, state: DecodingState, rows: list[Row], tokens_B: Tensor) -> tuple[list[Row], Tensor]:
        """Add a block of tokens to every row, or what it lacks; returns the rows that go on, and their last tokens."""
        noise_tBK = self._chooser.noise([row.generator for row in rows])
        first = 0
        while first < self._chooser.block and rows:
            last = first + min(self._steps, self._chooser.block - first, *(row.left for row in rows))
            chosen = []
            for step in range(first, last):
                logits_BV = state.step(tokens_B)
                tokens_B = self._chooser.choose(logits_BV, None if noise_tBK is None else noise_tBK[step])
                chosen.append(tokens_B)
            first = last
            for row, tokens in zip(rows, torch.stack(chosen, dim=1).tolist(), strict=True):
                row.take(tokens, self._end)
            order = places(rows)
            if len(order) == len(rows):
                continue
            rows = [rows[index] for index in order]
            if rows:
                state.keep(order)
                tokens_B = tokens_B[order]
                noise_tBK = None if noise_tBK is None else noise_tBK[:, order]
        return rows, tokens_B
