"""Attention with dropout on a CPU, where PyTorch has no fused kernel for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ray_l4.learner.dropout import keep_mask
from ray_l4.learner.sequences import Group, Sequences


class AttentionWithDropout(torch.autograd.Function):
    """Causal attention within each of several sequences.

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
        bias_TT = causal_bias(max(group.length for group in groups), window, q_SHD)
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


def causal_bias(length: int, window: int | None, like: Tensor) -> Tensor:
    """Return what is added to the scores: minus infinity for tokens that a token does not see, (length, length)."""
    bias_TT = torch.full((length, length), -math.inf, dtype=like.dtype, device=like.device).triu_(1)
    if window is not None:
        bias_TT += torch.full_like(bias_TT, -math.inf).tril_(-window)
    return bias_TT
