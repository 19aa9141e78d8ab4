"""Several models in step: they are given the same tokens, and the mean of their probabilities chooses the next one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ray_l4.learner.decoding_state import DecodingState, begin
from ray_l4.learner.model_calls import ModelCalls


class MeanState:
    """The rows of a batch in several models, with a state of each. All have the same rows in the same order."""

    def __init__(self, states: Sequence[DecodingState]) -> None:
        self._states = states

    @property
    def columns(self) -> int:
        return self._states[0].columns

    @property
    def capacity(self) -> int:
        return min(state.capacity for state in self._states)

    def step(self, tokens_B: Tensor) -> Tensor:
        return mean_log_probabilities([state.step(tokens_B) for state in self._states])

    def keep(self, order: Sequence[int]) -> None:
        for state in self._states:
            state.keep(order)

    def grow(self, capacity: int) -> None:
        for state in self._states:
            if state.capacity < capacity:
                state.grow(capacity)


def begin_together(calls: Sequence[ModelCalls], ids: Sequence[Sequence[int]], room: int) -> DecodingState:
    """Run all models on all but the last token of every row; see ``decoding_state.begin``, which serves a single one.

    Models that can decode rows of different lengths are only given rows of one length beside a model that cannot.
    """
    if len(calls) == 1:
        return begin(calls[0], ids, room)
    return MeanState([begin(own, ids, room) for own in calls])


def mean_log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the models' probabilities, (rows, vocab), in float32.

    ``logits``: ``logits_BV`` of each model, as it gives them. Tokens that one of the models does not have are left out,
    since they cannot be given to it. Source: REFERENCE.md#peers-together.
    """
    known = min(logits_BV.shape[-1] for logits_BV in logits)
    logs = [logits_BV.float().log_softmax(-1)[:, :known] for logits_BV in logits]
    return torch.stack(logs).logsumexp(0) - math.log(len(logits))
