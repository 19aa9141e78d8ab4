"""Attention within packed sequences, compared with a plain softmax over each sequence in value and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from ray_l4.learner import attention_dropout
from ray_l4.learner import packed_attention as packed
from ray_l4.learner import sequences as sequences_module
from ray_l4.learner.dropout import keep_mask
from ray_l4.learner.packed_attention import as_transformers_attends, fused_dropout, packed_attention, without_masks
from ray_l4.learner.sequences import Sequences

CPU = torch.device("cpu")
HEADS, SIZE = 4, 8

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of a difference, relative to the largest entry. Scores, weights and products are rounded to bfloat16, each with a
relative error of up to 2^-8 = 0.004."""

Drawn = list[tuple[Tensor, float]]


def drawn_inputs(
    lengths: Sequence[int], groups: int = 1, dtype: torch.dtype = torch.float32, value_size: int = SIZE, seed: int = 0
) -> list[Tensor]:
    """Draw queries, keys and values, (1, heads, tokens, size); ``groups`` heads of queries share one of keys."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((HEADS, SIZE), (HEADS // groups, SIZE), (HEADS // groups, value_size))
    return [
        torch.randn(1, heads, sum(lengths), size, generator=generator).to(dtype).requires_grad_()
        for heads, size in shapes
    ]


def plain(
    inputs: Sequence[Tensor],
    lengths: Sequence[int],
    scaling: float | None = None,
    window: int | None = None,
    dropped: Sequence[Tensor] | None = None,
) -> Tensor:
    """Attend sequence by sequence, query by query over the tokens that it sees; returns (1, tokens, heads, size).

    ``dropped``: for each sequence, what attention weights are multiplied by, (heads, length, length).
    """
    query, key, value = (tensor[0] for tensor in inputs)
    key, value = (tensor.repeat_interleave(HEADS // len(tensor), dim=0) for tensor in (key, value))
    parts, start = [], 0
    for index, length in enumerate(lengths):
        q, k, v = (tensor[:, start : start + length] for tensor in (query, key, value))
        scores = q @ k.transpose(1, 2) * (1 / math.sqrt(SIZE) if scaling is None else scaling)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        unseen = (distance < 0) | (distance >= (window or length))
        weights = scores.masked_fill(unseen, -math.inf).softmax(dim=-1)
        if dropped is not None:
            weights = weights * dropped[index]
        parts.append((weights @ v).transpose(0, 1))
        start += length
    return torch.cat(parts)[None]


def layer(groups: int = 1) -> Any:
    """Stand in for a layer of a model whose heads of keys serve so many heads of queries each."""
    return SimpleNamespace(num_key_value_groups=groups, is_causal=True)


def attend(inputs: Sequence[Tensor], lengths: Sequence[int], groups: int = 1, **settings: Any) -> Tensor:
    sequences = Sequences(lengths, CPU)
    mixed, weights = packed_attention(layer(groups), *inputs, None, sequences=sequences, **settings)
    assert weights is None
    return mixed


def assert_same(mine: Tensor, theirs: Tensor, inputs: Sequence[Tensor], twins: Sequence[Tensor]) -> None:
    """Compare values, and the gradients of queries, keys and values, relative to the largest entry of each."""
    tolerance = TOLERANCE[mine.dtype]
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9))
    gradients = torch.autograd.grad(mine, inputs, direction.to(mine.dtype))
    expected = torch.autograd.grad(theirs, twins, direction.to(theirs.dtype))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    theirs = theirs.detach()
    for own, other in zip((mine.detach(), *gradients), (theirs, *expected), strict=True):
        assert own.shape == other.shape
        # Without an earlier token to compare with, the gradient of a query is 0 up to the rounding of much larger ones.
        allowed = tolerance * max(float(other.abs().max()), 0.0 if other is theirs else largest / 4)
        assert float((own.float() - other.float()).abs().max()) <= allowed


def wide(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return copies in float64, for the twin."""
    return [tensor.detach().double().requires_grad_() for tensor in inputs]


@contextmanager
def kept_masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawn]:
    """Record every mask that is drawn, with its factor."""
    drawn: Drawn = []

    def recorded(shape: Any, rate: float) -> tuple[Tensor, float]:
        drawn.append(keep_mask(shape, rate))
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(attention_dropout, "keep_mask", recorded)
        yield drawn


def by_sequence(drawn: Drawn, lengths: Sequence[int]) -> list[Tensor]:
    """Return what the weights of each sequence are multiplied by, from the masks of the groups."""
    found: dict[int, Tensor] = {}
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    groups = Sequences(lengths, CPU).grouped(HEADS).groups
    for group, (mask, factor) in zip(groups, drawn, strict=True):
        rows = mask.view(group.size, HEADS, group.length, group.length)
        for row, first in zip(rows, group.rows_P.view(group.size, group.length)[:, 0].tolist(), strict=True):
            length = lengths[starts.index(first)]
            found[first] = factor * row[:, :length, :length]
    return [found[start] for start in starts]


batches = st.lists(st.integers(1, 12), min_size=1, max_size=6)
windows = st.one_of(st.none(), st.integers(1, 14))


@given(lengths=batches, groups=st.sampled_from((1, 2, 4)), window=windows, scaling=st.sampled_from((None, 0.3, 1.0)))
def test_attention_equals_a_softmax_over_each_sequence(
    lengths: list[int], groups: int, window: int | None, scaling: float | None
) -> None:
    inputs = drawn_inputs(lengths, groups)
    twins = wide(inputs)
    mine = attend(inputs, lengths, groups, sliding_window=window, scaling=scaling)
    assert_same(mine, plain(twins, lengths, scaling, window), inputs, twins)


@given(lengths=batches, groups=st.sampled_from((1, 2, 4)), window=windows, rate=st.sampled_from((0.1, 0.5)))
def test_attention_with_dropout_equals_a_softmax_with_the_same_masks(
    lengths: list[int], groups: int, window: int | None, rate: float
) -> None:
    inputs = drawn_inputs(lengths, groups, value_size=5)
    twins = wide(inputs)
    with kept_masks(pytest.MonkeyPatch()) as drawn:
        mine = attend(inputs, lengths, groups, sliding_window=window, dropout=rate)
    theirs = plain(twins, lengths, window=window, dropped=by_sequence(drawn, lengths))
    assert_same(mine, theirs, inputs, twins)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("window", [None, 3])
def test_bfloat16_is_close_to_the_plain_softmax(
    rate: float, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [9, 1, 7, 12]
    inputs = drawn_inputs(lengths, 2, torch.bfloat16)
    twins = wide(inputs)
    with kept_masks(monkeypatch) as drawn:
        mine = attend(inputs, lengths, 2, sliding_window=window, dropout=rate)
    assert mine.dtype == torch.bfloat16
    dropped = by_sequence(drawn, lengths) if rate else None
    assert_same(mine, plain(twins, lengths, window=window, dropped=dropped), inputs, twins)


@pytest.mark.parametrize("window", [None, 3])
def test_bfloat16_attends_in_float32_on_a_cpu(window: int | None) -> None:
    """Nothing but the result and the gradients is rounded."""
    lengths = [9, 1, 7, 12]
    inputs = drawn_inputs(lengths, dtype=torch.bfloat16)
    twins = wide(inputs)
    mine, exact = attend(inputs, lengths, sliding_window=window), plain(twins, lengths, window=window)
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (mine * weights).sum().backward()
    (exact * weights).sum().backward()
    for own, expected in [(mine, exact), *((a.grad, b.grad) for a, b in zip(inputs, twins, strict=True))]:
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.double(), expected.detach(), rtol=2**-8, atol=1e-4)


def test_attention_can_be_compared_with_that_of_transformers() -> None:
    inputs = drawn_inputs([12], dtype=torch.bfloat16)
    theirs = functional.scaled_dot_product_attention(*inputs, is_causal=True).transpose(1, 2)
    with as_transformers_attends():
        assert torch.equal(attend(inputs, [12]), theirs)
    assert not torch.equal(attend(inputs, [12]), theirs)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("window", [None, 3])
def test_queries_and_values_of_different_types_meet_in_that_of_the_products(
    rate: float, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotated positions make queries and keys float32 under autocast, where values are bfloat16."""
    lengths = [9, 1, 7]
    query, key, value = drawn_inputs(lengths)
    inputs = [query, key, value.detach().bfloat16().requires_grad_()]
    twins = wide(inputs)
    with torch.autocast("cpu", torch.bfloat16), kept_masks(monkeypatch) as drawn:
        mine = attend(inputs, lengths, sliding_window=window, dropout=rate)
    assert mine.dtype == torch.bfloat16
    dropped = by_sequence(drawn, lengths) if rate else None
    assert_same(mine, plain(twins, lengths, window=window, dropped=dropped), inputs, twins)


def test_dropout_follows_from_the_seed() -> None:
    inputs = drawn_inputs([5, 8])
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(attend(inputs, [5, 8], dropout=0.5))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_dropout_keeps_the_expectation() -> None:
    lengths = [6] * 4
    inputs = [tensor.detach() for tensor in drawn_inputs(lengths)]
    torch.manual_seed(0)
    mean = torch.stack([attend(inputs, lengths, dropout=0.3) for _ in range(3000)]).mean(dim=0)
    # Standard error: sqrt(0.3 / 0.7) times at most the largest value, about 3, over the root of 3,000.
    assert float((mean - attend(inputs, lengths)).abs().max()) < 5 * 0.65 * 3 / math.sqrt(3000)


@pytest.mark.parametrize("context", [nullcontext, fused_dropout])
def test_the_plan_takes_the_kernel_that_keeps_no_weights(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = drawn_inputs([5, 8])
    with context(), kept_masks(monkeypatch) as drawn:
        attend(inputs, [5, 8], dropout=0.5)
    assert bool(drawn) == (context is nullcontext)


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), heads=st.sampled_from((1, 12, 64)))
def test_groups_hold_every_token_once_and_pad_little(lengths: list[int], heads: int) -> None:
    sequences = Sequences(lengths, CPU)
    grouping = sequences.grouped(heads)
    assert grouping is sequences.grouped(heads), "made once for all layers"
    groups = grouping.groups
    tokens_S = torch.cat([group.tokens_N for group in groups])
    assert torch.equal(tokens_S[grouping.places_S], torch.arange(sum(lengths)))
    starts = {sum(lengths[:index]): length for index, length in enumerate(lengths)}
    for group in groups:
        rows, own = group.rows_P.view(group.size, group.length), []
        for row in rows:
            length = starts[int(row[0])]
            own.append(length)
            assert torch.equal(row[:length], row[0] + torch.arange(length))
        assert group.length == max(own)
        assert torch.equal(group.tokens_N, group.rows_P[group.places_N])
        real_P = torch.zeros(group.size * group.length, dtype=torch.bool)
        real_P[group.places_N] = True
        assert torch.equal(real_P.view_as(rows), torch.arange(group.length) < torch.tensor(own)[:, None])
        assert (group.padding_P is None) == bool(real_P.all())
        assert group.padding_P is None or torch.equal(group.padding_P, ~real_P)
        assert heads * sum(group.length**2 - length**2 for length in own) <= sequences_module._OVERHEAD


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_no_two_neighbouring_groups_could_be_one(lengths: list[int]) -> None:
    groups = Sequences(lengths, CPU).grouped(12).groups
    shorter = sorted(lengths, reverse=True)
    for group, following in pairwise(groups):
        own, shorter = shorter[: group.size], shorter[group.size :]
        together = [*own, shorter[0]]
        assert shorter[0] == following.length
        assert 12 * sum(group.length**2 - length**2 for length in together) > sequences_module._OVERHEAD


@given(lengths=batches)
def test_positions_start_anew_with_every_sequence(lengths: list[int]) -> None:
    sequences = Sequences(lengths, CPU)
    assert sequences.position_ids_S.tolist() == [place for length in lengths for place in range(length)]
    assert sequences.offsets.tolist() == [sum(lengths[:index]) for index in range(len(lengths) + 1)]


@given(lengths=batches)
def test_the_accelerators_kernel_gets_and_gives_sequences_of_any_length(lengths: list[int]) -> None:
    """PyTorch has no causal kernel for them on a CPU, so a loop over the sequences stands in for it."""
    calls: list[dict[str, Any]] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        calls.append(settings)
        assert [len(own) for own in (query, key, value)] == [len(lengths)] * 3
        parts = [
            functional.scaled_dot_product_attention(*(tensor[None] for tensor in own), is_causal=True, scale=0.3)[0]
            for own in zip(*(tensor.transpose(1, 2).unbind() for tensor in (query, key, value)), strict=True)
            for own in [[tensor.transpose(0, 1) for tensor in own]]
        ]
        joined = torch.cat([part.transpose(0, 1) for part in parts])
        return torch.nested.nested_tensor_from_jagged(joined, Sequences(lengths, CPU).offsets).transpose(1, 2)

    inputs = drawn_inputs(lengths)
    twins = wide(inputs)
    stand_in = SimpleNamespace(scaled_dot_product_attention=kernel)
    with pytest.MonkeyPatch().context() as patch:
        patch.setattr(packed, "functional", stand_in)
        parts = [tensor[0].transpose(0, 1) for tensor in inputs]
        mine = packed._on_accelerator(*parts, Sequences(lengths, CPU), 0.1, 0.3)[None]
    assert calls == [{"dropout_p": 0.1, "is_causal": True, "scale": 0.3}]
    assert_same(mine, plain(twins, lengths, 0.3), inputs, twins)


def test_rows_of_a_grid_are_attended_to_as_by_pytorch() -> None:
    query, key, value = drawn_inputs([6])
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    mask[..., 0] = False
    mask[..., 0, 0] = True
    for given_mask in (None, mask):
        mixed, _ = packed_attention(layer(), query, key, value, given_mask)
        expected = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=given_mask, is_causal=given_mask is None
        )
        assert torch.equal(mixed, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("module", "asked", "words"),
    [
        (layer(), {"softcap": 30.0}, "softcap"),
        (layer(), {"s_aux": torch.zeros(HEADS)}, "s_aux"),
        (layer(), {"position_bias": torch.zeros(1, HEADS, 6, 6)}, "position_bias"),
        (layer(), {"is_causal": False}, "not causal"),
        (SimpleNamespace(is_causal=False), {}, "not causal"),
    ],
)
def test_what_would_change_the_scores_is_refused(module: Any, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(NotImplementedError, match=words):
        packed_attention(module, *drawn_inputs([4, 2]), None, sequences=Sequences([4, 2], CPU), **asked)


def test_arguments_without_a_value_are_accepted() -> None:
    inputs = drawn_inputs([4, 2])
    none = dict.fromkeys(("softcap", "s_aux", "position_bias"))
    assert torch.equal(attend(inputs, [4, 2], is_causal=True, **none), attend(inputs, [4, 2]))


def test_windows_are_recorded_and_masks_left_out_within_the_context_only() -> None:
    asked = {"batch_size": 1, "q_length": 6, "kv_length": 6, "local_size": 2, "allow_is_causal_skip": False}
    inputs = drawn_inputs([4, 2])
    with without_masks() as outer:
        assert packed._mask(**asked) is None
        with without_masks() as inner:
            attend(inputs, [4, 2], sliding_window=3)
            attend(inputs, [4, 2])
        assert packed._mask(**asked | {"local_size": None}) is None
    assert inner is outer
    assert (outer.of_masks, outer.of_layers) == ({2}, {3})
    mask = packed._mask(**asked)
    assert mask is not None and mask.shape == (1, 1, 6, 6)


class _Attention(nn.Module):
    """A layer whose parameters are queries, keys and values, to be computed again in the backward pass."""

    num_key_value_groups, is_causal = 1, True

    def forward(self, *inputs: Tensor) -> Tensor:
        return packed_attention(self, *inputs, None, dropout=0.5, sequences=Sequences([5, 8], CPU))[0]


def test_attention_that_is_computed_again_draws_the_same_masks() -> None:
    inputs = drawn_inputs([5, 8])
    found = []
    for again in (False, True):
        torch.manual_seed(3)
        if again:
            mixed = torch.utils.checkpoint.checkpoint(_Attention(), *inputs, use_reentrant=False)
        else:
            mixed = _Attention()(*inputs)
        torch.rand(7)  # others draw between the two passes
        found.append(torch.autograd.grad(mixed.square().sum(), inputs))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
