"""How a model is called to decode: the arguments that its class takes, and what it can do with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""Names of the same argument, from the newest on."""
_ATTENTION = (DynamicLayer, DynamicSlidingWindowLayer)
"""What keeps nothing but the keys and values of tokens."""


@dataclass(frozen=True)
class ModelCalls:
    """A model in evaluation mode, and what is known of it."""

    model: PreTrainedModel
    cache_argument: str | None
    """None if it takes no cache of Transformers' kind; it is then run on whole sequences for every token."""
    padded: bool
    """Whether rows of different lengths can be decoded together: its state is keys and values alone, which a mask can
    hide, and it takes positions."""
    takes_positions: bool
    takes_last: bool
    """Whether it computes the logits of the last position alone."""
    always_masked: bool
    """Whether it has a padding token. Transformers warns of that token where there is no mask."""
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    """Makes the context in which it is called, if its arithmetic is not that of the caller."""

    @classmethod
    def of(
        cls, model: PreTrainedModel, context: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> ModelCalls:
        """Find out how to call ``model``, always in a new ``context``."""
        names = _arguments(type(model))
        argument = next((name for name in _CACHE_ARGUMENTS if name in names), None)
        if not model._supports_default_dynamic_cache():
            argument = None
        positions = "position_ids" in names
        layers = new_cache(model).layers if argument else []
        attends = all(type(layer) in _ATTENTION for layer in layers)
        padded = argument is not None and positions and attends
        masked = getattr(model.config, "pad_token_id", None) is not None
        return cls(model, argument, padded, positions, "logits_to_keep" in names, masked, context)

    def last_logits(self, ids_BT: Tensor, cache: Any, positions_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Add tokens to ``cache`` (None if there is none), and return the logits of the last one, (rows, vocab).

        ``mask_BT``: True at all tokens that are no padding, those in the cache included; None if there is no padding.
        """
        arguments: dict[str, Any] = {"input_ids": ids_BT, "use_cache": cache is not None, "return_dict": True}
        if cache is not None:
            arguments[str(self.cache_argument)] = cache
        if mask_BT is not None:
            arguments["attention_mask"] = mask_BT
        if self.takes_positions:
            arguments["position_ids"] = positions_BT
        if self.takes_last:
            arguments["logits_to_keep"] = 1
        rows = _contiguous_rows(self.model) if ids_BT.shape[1] > 1 else nullcontext()
        with self.context(), rows:
            logits_BV: Tensor = self.model(**arguments).logits[:, -1]
        return logits_BV


@contextmanager
def _contiguous_rows(model: PreTrainedModel) -> Iterator[None]:
    """Let the output layer read contiguous hidden states.

    Those of the last positions of longer rows are not, and for such input torch multiplies each row by a copy of the
    output weights of its own: with a vocabulary of 49,152 tokens, gigabytes for a batch.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache with the kinds of layers that ``model`` has."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _arguments(kind: type) -> set[str]:
    """Return the names that ``forward`` takes, including those that it passes to the class it inherits from."""
    names: set[str] = set()
    for cls in kind.__mro__:
        if (forward := vars(cls).get("forward")) is None:
            continue
        parameters = inspect.signature(forward).parameters
        names |= set(parameters)
        passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if not passes_on or names & set(_CACHE_ARGUMENTS):
            break
    return names
