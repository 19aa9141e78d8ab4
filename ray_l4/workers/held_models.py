"""The models that an evaluator holds, each with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ray_l4.config.model import ModelConfig
from ray_l4.learner.models import blank_model, load_bytes, same_architecture
from ray_l4.text.tokenizer import TaskTokenizer

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Wanted:
    """A model that a call needs."""

    checkpoint: str
    """Unique to a set of weights."""
    settings: ModelConfig
    description: Mapping[str, Any]
    """The model's configuration."""
    weights: np.ndarray
    """Safetensors bytes."""


@dataclass(eq=False)
class _Held:
    model: PreTrainedModel
    description: Mapping[str, Any]
    checkpoint: str | None
    """None while it may hold the weights of none."""


class HeldModels:
    """As many models as one call has needed at most; weights that one of them holds are not loaded again."""

    def __init__(self, tokenizer: TaskTokenizer, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._device = device
        self._held: list[_Held] = []
        """The one that was used last is the last."""

    def __str__(self) -> str:
        return ", ".join(held.checkpoint for held in self._held if held.checkpoint is not None)

    def forget(self) -> None:
        """Load the next checkpoints even if they have the names of those that are held: their weights may differ."""
        for held in self._held:
            held.checkpoint = None

    def find(self, checkpoint: str) -> PreTrainedModel | None:
        """Return the model with the weights of a checkpoint, if it is held."""
        return next((held.model for held in self._held if held.checkpoint == checkpoint), None)

    def free(self) -> None:
        """Hold no model any more."""
        self._held = []

    def load(self, wanted: Sequence[Wanted]) -> list[PreTrainedModel]:
        """Return the wanted models in evaluation mode, in order.

        A model that is not needed for them is freed before another one is built in its place.
        """
        for held in self._held:
            for each in wanted:
                if held.checkpoint == each.checkpoint and not same_architecture(held.description, each.description):
                    held.checkpoint = None  # it is described otherwise
        kept = {held.checkpoint for held in self._held} & {each.checkpoint for each in wanted}
        for each in sorted(wanted, key=lambda each: each.checkpoint not in kept):  # those that are there first
            self._load(each, wanted)
        models = {held.checkpoint: held.model for held in self._held}
        return [models[each.checkpoint] for each in wanted]

    def _load(self, wanted: Wanted, beside: Sequence[Wanted]) -> None:
        """Load one model, without touching the others among those that are wanted ``beside`` it."""
        others = {each.checkpoint for each in beside} - {wanted.checkpoint}
        free = [held for held in self._held if held.checkpoint not in others]
        fitting = [held for held in free if same_architecture(held.description, wanted.description)]
        mine = next((held for held in fitting if held.checkpoint == wanted.checkpoint), next(iter(fitting), None))
        if mine is not None:
            self._held.remove(mine)
        else:
            if len(self._held) >= len(beside):
                self._held.remove(free[0])
            del free  # the model is freed before another one is built
            model = blank_model(wanted.settings, self._tokenizer, wanted.description).to(self._device)
            mine = _Held(model.eval(), wanted.description, None)
        if mine.checkpoint != wanted.checkpoint:
            mine.checkpoint = None  # if loading fails half-way, no valid checkpoint is held
            load_bytes(mine.model, wanted.weights, seed=0)  # rows of tokens that came later are not used
            mine.checkpoint = wanted.checkpoint
        self._held.append(mine)
