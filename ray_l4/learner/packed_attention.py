"""Attention within each of several sequences that lie one after another, without padding between them.

Transformers calls it through its attention interface, so every architecture that uses the interface has it
(``learner.packing`` finds out which ones do).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ray_l4.learner.dropout import keep_mask

NAME = "ray_l4_packed"
"""By which Transformers knows this attention."""
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments that would change the scores, which none of the kernels here does."""
_OVERHEAD = 20_000
"""Scores whose computation takes as long as the calls for one more group of sequences."""


@dataclass(frozen=True)
class Group:
    """Sequences of similar length that are attended to together, padded to the longest of them."""

    size: int
    length: int
    rows_P: Tensor
    """(size * length,) the packed position of every padded one; that of some other token for padding."""
    places_N: Tensor
    """(tokens of the group,) the padded position of each of its tokens, in the order of ``tokens_N``."""
    tokens_N: Tensor
    """(tokens of the group,) their packed positions."""
    padding_P: Tensor | None
    """(size * length,) True at padding; None if there is none."""


@dataclass(frozen=True)
class Grouping:
    """All groups of a pack."""

    groups: Sequence[Group]
    places_S: Tensor
    """(num_tokens,) the place of every token among those of all groups, one group after another."""


class Sequences:
    """The lengths of packed sequences, and what attention derives from them once for all layers."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.device = device

    @cached_property
    def position_ids_S(self) -> Tensor:
        """The position of every token within its sequence, (num_tokens,)."""
        return torch.cat([torch.arange(length) for length in self.lengths]).to(self.device)

    @cached_property
    def offsets(self) -> Tensor:
        """The first token of each sequence, and the number of all tokens: (num_sequences + 1,)."""
        return torch.tensor([0, *np.cumsum(self.lengths)], device=self.device)

    def grouped(self, heads: int) -> Grouping:
        """Return groups of sequences in which padding costs less than a group of their own would."""
        if heads not in self._groupings:
            groups = [self._group(members) for members in _grouped(self.lengths, heads)]
            tokens_S = torch.cat([group.tokens_N for group in groups])
            places_S = torch.empty_like(tokens_S)
            places_S[tokens_S] = torch.arange(len(tokens_S), device=self.device)
            self._groupings[heads] = Grouping(groups, places_S)
        return self._groupings[heads]

    @cached_property
    def _groupings(self) -> dict[int, Grouping]:
        return {}

    def _group(self, members: Sequence[int]) -> Group:
        starts = np.cumsum([0, *self.lengths])
        longest = max(self.lengths[member] for member in members)
        column = np.arange(longest)
        lengths = np.asarray([self.lengths[member] for member in members])
        real = column < lengths[:, None]
        rows = np.where(real, np.asarray([starts[member] for member in members])[:, None] + column, 0)
        rows_P, real_P = torch.from_numpy(rows.ravel()), torch.from_numpy(real.ravel())
        places_N = torch.from_numpy(np.flatnonzero(real))
        padding_P = None if real.all() else ~real_P.to(self.device)
        rows_P, places_N, tokens_N = (tensor.to(self.device) for tensor in (rows_P, places_N, rows_P[places_N]))
        return Group(len(members), longest, rows_P, places_N, tokens_N, padding_P)


def _grouped(lengths: Sequence[int], heads: int) -> list[list[int]]:
    """Return the sequences of each group, from the longest to the shortest sequence."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    waste = 0
    for index in order:
        longest = lengths[groups[-1][0]] if groups else 0
        waste += heads * (longest**2 - lengths[index] ** 2)
        if groups and waste <= _OVERHEAD:
            groups[-1].append(index)
        else:
            groups.append([index])
            waste = 0
    return groups


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
        mixed_SHD: Tensor = _WithDropout.apply(query_SHD, key_SHD, value_SHD, sequences, (dropout, scale, window))
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
    """Attend group by group with PyTorch's fused kernel."""
    dropout, scale, window = settings
    parts = []
    grouping = sequences.grouped(q_SHD.shape[1])
    for group in grouping.groups:
        q, k, v = (_padded(tensor, group).transpose(1, 2) for tensor in (q_SHD, k_SHD, v_SHD))
        bias = None if window is None else _bias(group.length, window, q)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=bias is None, scale=scale
        )
        parts.append(mixed.transpose(1, 2).flatten(0, 1)[group.places_N])
    return torch.cat(parts).index_select(0, grouping.places_S)


def _padded(tensor_SHD: Tensor, group: Group) -> Tensor:
    """Return the tokens of a group, (size, length, heads, size of a head)."""
    return tensor_SHD.index_select(0, group.rows_P).unflatten(0, (group.size, group.length))


def _bias(length: int, window: int | None, like: Tensor) -> Tensor:
    """Return what is added to the scores: minus infinity for tokens that a token does not see, (length, length)."""
    bias_TT = torch.full((length, length), -math.inf, dtype=like.dtype, device=like.device).triu_(1)
    if window is not None:
        bias_TT += torch.full_like(bias_TT, -math.inf).tril_(-window)
    return bias_TT


class _WithDropout(torch.autograd.Function):
    """Attention with dropout on a CPU, where PyTorch has no fused kernel for it.

    Keeps the attention weights and one byte for each of them for the backward pass, instead of five tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_SHD: Tensor,
        k_SHD: Tensor,
        v_SHD: Tensor,
        sequences: Sequences,
        settings: tuple[float, float, int | None],
    ) -> Tensor:
        dropout, scale, window = settings
        groups = sequences.grouped(q_SHD.shape[1]).groups
        bias_TT = _bias(max(group.length for group in groups), window, q_SHD)
        # The heads of values may have another size than those of queries and keys.
        mixed_SHD = torch.empty((*q_SHD.shape[:2], v_SHD.shape[-1]), dtype=q_SHD.dtype, device=q_SHD.device)
        kept: list[Tensor] = []
        for group in groups:
            q, k, v = (_by_head(tensor, group) for tensor in (q_SHD, k_SHD, v_SHD))
            scores = torch.baddbmm(bias_TT[: group.length, : group.length], q, k.transpose(1, 2), alpha=scale)
            weights = torch.softmax(scores, dim=-1)
            keep, factor = keep_mask(weights.shape, dropout)
            mixed = torch.bmm((weights * keep).mul_(factor), v)
            mixed_SHD[group.tokens_N] = _tokens(mixed, group)
            kept += [weights, keep]
        ctx.save_for_backward(q_SHD, k_SHD, v_SHD, *kept)
        ctx.groups, ctx.scale, ctx.factor = groups, scale, factor
        return mixed_SHD

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q_SHD, k_SHD, v_SHD, *kept = ctx.saved_tensors
        found = [torch.empty(own.shape, dtype=own.dtype, device=own.device) for own in (q_SHD, k_SHD, v_SHD)]
        for index, group in enumerate(ctx.groups):
            weights, keep = kept[2 * index : 2 * index + 2]
            q, k, v = (_by_head(tensor, group) for tensor in (q_SHD, k_SHD, v_SHD))
            gradient = _by_head(gradients[0], group, zero_padding=True)
            of_v = torch.bmm((weights * keep).mul_(ctx.factor).transpose(1, 2), gradient)
            of_weights = torch.bmm(gradient, v.transpose(1, 2)).mul_(keep).mul_(ctx.factor)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q = torch.bmm(of_scores, k).mul_(ctx.scale)
            of_k = torch.bmm(of_scores.transpose(1, 2), q).mul_(ctx.scale)
            for whole_SHD, part in zip(found, (of_q, of_k, of_v), strict=True):
                whole_SHD[group.tokens_N] = _tokens(part, group)
        return *found, None, None


def _by_head(tensor_SHD: Tensor, group: Group, *, zero_padding: bool = False) -> Tensor:
    """Return the tokens of a group head by head, (size * heads, length, size of a head)."""
    padded = tensor_SHD.index_select(0, group.rows_P)
    if zero_padding and group.padding_P is not None:
        padded.masked_fill_(group.padding_P[:, None, None], 0.0)
    return padded.unflatten(0, (group.size, group.length)).transpose(1, 2).flatten(0, 1)


def _tokens(by_head: Tensor, group: Group) -> Tensor:
    """Invert ``_by_head`` without the padding: (tokens of the group, heads, size of a head)."""
    padded = by_head.unflatten(0, (group.size, -1)).transpose(1, 2).flatten(0, 1)
    return padded.index_select(0, group.places_N)
