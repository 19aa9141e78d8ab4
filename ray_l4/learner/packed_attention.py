"""Attention within each of several sequences that lie one after another, without padding between them.

Transformers calls it through its attention interface, so every architecture that uses the interface has it
(``learner.packing`` finds out which ones do).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ray_l4.learner.attention_dropout import AttentionWithDropout, causal_bias
from ray_l4.learner.sequences import Group, Sequences

NAME = "ray_l4_packed"
"""By which Transformers knows this attention."""
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments that would change the scores, which none of the kernels here does."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    sequences: Sequences | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend causally within every sequence; without ``sequences``, to rows of a grid as PyTorch's attention does.

    Args:
        module: the layer, which may have fewer heads of keys than of queries (``num_key_value_groups``).
        query: (1, heads, num_tokens, size), the tokens of all sequences one after another; so are ``key`` and
            ``value``, with their own numbers of heads.
        attention_mask: for the rows of a grid.
        dropout: rate at which attention weights are dropped.
        scaling: factor of the scores; by default the inverse square root of the size.
        sliding_window: number of tokens that a token sees, itself included; None for all before it.
        sequences: the sequences; None for a grid.

    Returns:
        (1, num_tokens, heads, size), and no attention weights.

    Raises:
        NotImplementedError: the layer asks for something else, such as a soft cap of the scores.
    """
    if sequences is None:
        given = (module, query, key, value, attention_mask, dropout, scaling)
        return sdpa_attention_forward(*given, sliding_window=sliding_window, **others)
    wrong = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if wrong or others.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"packed attention of {type(module).__name__}: {wrong or 'not causal'}")
    query, key, value = _of_one_type(query, key, value)
    repeats = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = _packing.get()
    if asked is not None and sliding_window is not None:
        asked.of_layers.add(sliding_window)
    windowed = sliding_window is not None and sliding_window < max(sequences.lengths)
    window = sliding_window if windowed else None
    query_SHD, key_SHD, value_SHD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if query.device.type != "cpu" and window is None:
        return _on_accelerator(query_SHD, key_SHD, value_SHD, sequences, dropout, scale)[None], None
    if dropout and query.device.type == "cpu" and not _has_fused_dropout.get():
        mixed_SHD: Tensor = AttentionWithDropout.apply(
            query_SHD, key_SHD, value_SHD, sequences, (dropout, scale, window)
        )
    else:
        mixed_SHD = _by_group(query_SHD, key_SHD, value_SHD, sequences, (dropout, scale, window))
    return mixed_SHD[None], None


def _of_one_type(*tensors: Tensor) -> list[Tensor]:
    """Convert queries, keys and values to the type of the context's products, as PyTorch's attention does.

    Rotated positions make queries and keys float32, while values stay narrow.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


@dataclass(frozen=True)
class Windows:
    """The sliding windows of a model, in tokens. If its masks have others than its layers say, it cannot be packed."""

    of_masks: set[int] = field(default_factory=set)
    """Those of the masks that it would make for a grid."""
    of_layers: set[int] = field(default_factory=set)
    """Those that its layers pass on to their attention."""


_packing: ContextVar[Windows | None] = ContextVar("packing", default=None)


@contextmanager
def without_masks() -> Iterator[Windows]:
    """Within this context, models with this attention make no mask, which for packed sequences would be enormous.

    Yields the windows that are asked for within it.
    """
    windows = _packing.get() or Windows()
    token = _packing.set(windows)
    try:
        yield windows
    finally:
        _packing.reset(token)


_has_fused_dropout: ContextVar[bool] = ContextVar("has_fused_dropout", default=False)


@contextmanager
def fused_dropout() -> Iterator[None]:
    """Within this context, take PyTorch's attention for one that keeps no weights even with dropout, as on a GPU.

    That serves ``ray-l4 plan``, which runs what a GPU will do on tensors without values.
    """
    token = _has_fused_dropout.set(True)
    try:
        yield
    finally:
        _has_fused_dropout.reset(token)


_compared: ContextVar[bool] = ContextVar("compared", default=False)


@contextmanager
def as_transformers_attends() -> Iterator[None]:
    """Within this context, attend in the type given, so that results can be compared with those of the model's own
    attention: after many layers, two kernels for a narrow type differ by much.
    """
    token = _compared.set(True)
    try:
        yield
    finally:
        _compared.reset(token)


def _mask(*arguments: Any, **named: Any) -> Tensor | None:
    asked = _packing.get()
    if asked is None:
        return sdpa_mask(*arguments, **named)
    if named.get("local_size") is not None:
        asked.of_masks.add(named["local_size"])
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)


def _on_accelerator(
    q_SHD: Tensor, k_SHD: Tensor, v_SHD: Tensor, own: Sequences, dropout: float, scale: float
) -> Tensor:
    """Attend with one kernel for sequences of any length."""
    longest = max(own.lengths)

    def nested(tensor: Tensor) -> Tensor:
        jagged = torch.nested.nested_tensor_from_jagged(tensor, own.offsets, min_seqlen=1, max_seqlen=longest)
        return jagged.transpose(1, 2)

    mixed = functional.scaled_dot_product_attention(
        nested(q_SHD), nested(k_SHD), nested(v_SHD), dropout_p=dropout, is_causal=True, scale=scale
    )
    return mixed.transpose(1, 2).values()


def _by_group(
    q_SHD: Tensor, k_SHD: Tensor, v_SHD: Tensor, sequences: Sequences, settings: tuple[float, float, int | None]
) -> Tensor:
    """Attend group by group with PyTorch's fused kernel, on a CPU in float32.

    The backward pass of its bfloat16 kernel for CPUs takes longer (docs/PERFORMANCE.md), and rounds more.
    """
    dropout, scale, window = settings
    kept = q_SHD.dtype
    if q_SHD.device.type == "cpu" and kept.itemsize < 4 and not _compared.get():
        q_SHD, k_SHD, v_SHD = q_SHD.float(), k_SHD.float(), v_SHD.float()
    parts = []
    grouping = sequences.grouped(q_SHD.shape[1])
    for group in grouping.groups:
        q, k, v = (_padded(tensor, group).transpose(1, 2) for tensor in (q_SHD, k_SHD, v_SHD))
        bias = None if window is None else causal_bias(group.length, window, q)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=bias is None, scale=scale
        )
        parts.append(mixed.transpose(1, 2).flatten(0, 1)[group.places_N])
    return torch.cat(parts).index_select(0, grouping.places_S).to(kept)


def _padded(tensor_SHD: Tensor, group: Group) -> Tensor:
    """Return the tokens of a group, (size, length, heads, size of a head)."""
    return tensor_SHD.index_select(0, group.rows_P).unflatten(0, (group.size, group.length))
