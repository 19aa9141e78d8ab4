"""Packing: a batch goes through a model as one row of tokens, without padding between its sequences.

Linear layers, norms and dropout act on every token by itself, so they need no rows. Attention does, and gets them from
``learner.packed_attention``; positions are given explicitly. Whether that is all that an architecture does with a row
is found out by running it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ray_l4.learner.packed_attention import NAME, as_transformers_attends, without_masks
from ray_l4.learner.sequences import Sequences

Arithmetic = Callable[[], AbstractContextManager[Any]]
"""Returns the context in which a model's matrix products are computed."""

_PROBE_LENGTHS = (5, 3, 6)
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference between packed and separate sequences, relative to the largest hidden state, by type."""
_COARSE = 0.02
"""The same for narrower types."""


def use_packed_attention(model: PreTrainedModel, arithmetic: Arithmetic = nullcontext) -> bool:
    """Switch the attention of ``model`` to that of packed sequences; returns False, without a change, if it cannot.

    The model still runs on grids as before. It is run on a few tokens, to compare packed sequences with separate ones.
    On an accelerator it also learns them, in the ``arithmetic`` of training: not every kernel knows every type, size of
    a head and dropout.
    """
    before = model.config._attn_implementation
    was_training = model.training
    model.eval()
    packed_SD = _try_packed(model)
    if packed_SD is None:
        model.train(was_training)
        return False
    model.set_attn_implementation(before)
    expected_SD = torch.cat([_hidden(model, [length]) for length in _PROBE_LENGTHS])
    model.train(was_training)
    tolerance = _TOLERANCES.get(packed_SD.dtype, _COARSE)
    fits = bool((packed_SD - expected_SD).abs().max() <= tolerance * expected_SD.abs().max())
    if fits:
        model.set_attn_implementation(NAME)
    if fits and model.device.type != "cpu" and not learns_packed(model, arithmetic):
        model.set_attn_implementation(before)
        return False
    return fits


def learns_packed(model: PreTrainedModel, arithmetic: Arithmetic = nullcontext) -> bool:
    """Return whether forward and backward passes of a few packed tokens run, with dropout. Nothing is updated."""
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), arithmetic():
            _hidden(model, _PROBE_LENGTHS, packed=True, graph=True).float().sum().backward()
        return True
    except (NotImplementedError, RuntimeError):
        return False
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)


def runs_packed(model: PreTrainedModel) -> bool:
    """Do the same without a comparison, for a model whose tensors have no values."""
    return _try_packed(model) is not None


def _try_packed(model: PreTrainedModel) -> Tensor | None:
    """Switch the attention, and return the hidden states of a few packed tokens; None, without a change, if it fails.

    It fails if an architecture has attention of its own, takes no explicit positions, or has a mask of which its layers
    do not know: only a longer sequence than these would show the difference.
    """
    if not getattr(model, "_supports_attention_backend", False) or model.base_model is model:
        return None
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(NAME)
        with without_masks() as windows, as_transformers_attends():
            packed_SD = _hidden(model, _PROBE_LENGTHS, packed=True)
        if windows.of_masks != windows.of_layers:
            raise NotImplementedError(f"{type(model).__name__}: {windows}")
        return packed_SD
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        model.set_attn_implementation(before)
        return None


def run_packed(model: nn.Module, ids_1S: Tensor, sequences: Sequences) -> Any:
    """Run ``model`` on packed sequences, (1, num_tokens) ids; returns its outputs."""
    with without_masks():
        return model(
            input_ids=ids_1S, position_ids=sequences.position_ids_S[None], sequences=sequences, use_cache=False
        )


def _hidden(
    model: PreTrainedModel, lengths: tuple[int, ...] | list[int], *, packed: bool = False, graph: bool = False
) -> Tensor:
    """Return the last hidden states of sequences of some tokens, (num_tokens, width); with their ``graph`` if asked."""
    size = model.config.get_text_config().vocab_size
    ids_S = torch.cat([torch.arange(length) * 7 + length for length in lengths]) % size
    ids_1S = ids_S[None].to(model.device)
    with torch.set_grad_enabled(graph):
        if packed:
            found = run_packed(model.base_model, ids_1S, Sequences(lengths, model.device))
        else:
            found = model.base_model(input_ids=ids_1S, use_cache=False)
    hidden_SD: Tensor = found.last_hidden_state[0]
    return hidden_SD
