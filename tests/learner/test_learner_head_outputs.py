"""Gradients that are given row by row, compared with plain autograd through the output layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ray_l4.learner.head_outputs import HeadOutputs, HiddenRows, WholeLogits, continue_backward
from ray_l4.learner.predictions import OutputLayer

WIDTH, VOCAB, ROWS = 6, 11, 9

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Relative to the largest entry. In bfloat16 the gradient of the logits, the products, and the sums over chunks are
rounded, each with a relative error of up to 2^-8 = 0.004."""


@dataclass
class Case:
    """A model that ends in an output layer, at the positions of two heads."""

    embedding: nn.Embedding
    body: nn.Linear
    head: nn.Linear
    ids_N: Tensor

    @property
    def modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.embedding, self.body, self.head])

    def hidden(self) -> Tensor:
        hidden_ND: Tensor = self.body(self.embedding(self.ids_N)).tanh()
        return hidden_ND


def case(*, tied: bool = True, bias: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
    torch.manual_seed(seed)
    found = Case(
        nn.Embedding(VOCAB, WIDTH),
        nn.Linear(WIDTH, WIDTH),
        nn.Linear(WIDTH, VOCAB, bias=bias),
        torch.randint(VOCAB, (2 * ROWS,)),
    )
    if tied:
        found.head.weight = found.embedding.weight
    found.modules.to(dtype)
    if tied:
        assert found.head.weight is found.embedding.weight
    return found


def layer_of(head: nn.Linear, dtype: torch.dtype | None = None) -> OutputLayer:
    dtype = dtype or head.weight.dtype
    return OutputLayer(head.weight.detach().to(dtype), None if head.bias is None else head.bias.detach().to(dtype))


def loss_of(logits_NV: Tensor) -> Tensor:
    """Return a loss whose gradient depends on the logits, as that of a divergence does."""
    logits_NV = logits_NV.float()
    return (logits_NV.softmax(-1) * torch.arange(VOCAB)).sum() + logits_NV.logsumexp(-1).square().sum() / 8


def gradient_of(logits_MV: Tensor) -> Tensor:
    leaf = logits_MV.detach().float().requires_grad_()
    (gradient_MV,) = torch.autograd.grad(loss_of(leaf), leaf)
    return gradient_MV


def give(head: HeadOutputs, stops: Sequence[int]) -> None:
    """Give a head its gradient in chunks of rows that end at ``stops``."""
    for start, stop in pairwise([0, *stops]):
        rows = slice(start, stop)
        head.add_gradient(rows, gradient_of(head.logits(rows)))


WEIGHTS = (1.0, 0.25)
STOPS = (4, 7, ROWS)


def by_rows(
    own: Case, layer: OutputLayer | None = None, known: int | None = None, stops: Sequence[int] = STOPS
) -> None:
    layer = layer or layer_of(own.head)
    parts = own.hidden().split(ROWS)
    heads = [HiddenRows(part, layer, own.head, weight) for part, weight in zip(parts, WEIGHTS, strict=True)]
    for head in heads:
        if known is not None:
            head.known_KV = layer.logits(head.hidden_ND.detach()[:known])
        give(head, stops)
    continue_backward(heads)


def by_autograd(own: Case) -> None:
    hidden_ND = own.hidden()
    losses = [weight * loss_of(part) for part, weight in zip(own.head(hidden_ND).split(ROWS), WEIGHTS, strict=True)]
    loss = torch.stack(losses).sum()
    if loss.requires_grad:
        loss.backward()


def assert_same(own: Case, twin: Case, tolerance: float | None = None) -> None:
    for (name, mine), theirs in zip(own.modules.named_parameters(), twin.modules.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None and theirs.grad is not None:
            assert (mine.grad.dtype, mine.grad.shape) == (mine.dtype, mine.shape)
            allowed = (tolerance or TOLERANCE[mine.dtype]) * float(theirs.grad.abs().max())
            assert float((mine.grad.float() - theirs.grad.float()).abs().max()) <= allowed, name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_equal_those_of_autograd(tied: bool, bias: bool, dtype: torch.dtype) -> None:
    own = case(tied=tied, bias=bias, dtype=dtype)
    twin = copy.deepcopy(own)
    twin.modules.float()
    by_rows(own)
    by_autograd(twin)
    assert_same(own, twin, TOLERANCE[dtype])


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_added_to_those_that_exist(tied: bool) -> None:
    """Such are those of the micro-batch before, or of the other head."""
    own = case(tied=tied, bias=True)
    twin = copy.deepcopy(own)
    for both in (own, twin):
        for index, parameter in enumerate(both.modules.parameters()):
            parameter.grad = torch.full_like(parameter, 1.0 + index)
    by_rows(own)
    by_autograd(twin)
    assert_same(own, twin)


@given(
    stops=st.lists(st.integers(1, ROWS - 1), unique=True).map(lambda found: [*sorted(found), ROWS]),
    known=st.one_of(st.none(), st.integers(0, ROWS)),
    seed=st.integers(0, 99),
)
def test_chunks_and_known_logits_do_not_change_the_gradients(stops: list[int], known: int | None, seed: int) -> None:
    own = case(bias=True, seed=seed)
    twin = copy.deepcopy(own)
    by_rows(own, known=known, stops=stops)
    by_autograd(twin)
    assert_same(own, twin)


@given(known=st.integers(0, ROWS), start=st.integers(0, ROWS), count=st.integers(0, ROWS))
def test_known_logits_are_used_where_there_are_any(known: int, start: int, count: int) -> None:
    own = case(bias=True)
    stop = min(start + count, ROWS)
    rows = HiddenRows(own.hidden()[:ROWS], layer_of(own.head), own.head)
    expected_NV = rows.whole().detach()
    expected_NV[:known] = -7.0
    rows.known_KV = expected_NV[:known].clone()
    torch.testing.assert_close(rows.logits(slice(start, stop)), expected_NV[start:stop])
    assert rows.shape == (ROWS, VOCAB)


FROZEN = {
    "nothing": (),
    "the layer": ("head",),
    "all before the layer": ("embedding", "body"),
    "everything": ("embedding", "body", "head"),
}


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("bias", [True, False])
def test_frozen_weights_get_no_gradient(frozen: str, bias: bool) -> None:
    own = case(tied=False, bias=bias)
    for name in FROZEN[frozen]:
        getattr(own, name).requires_grad_(False)
    twin = copy.deepcopy(own)
    by_rows(own)
    by_autograd(twin)
    assert_same(own, twin)
    assert all((p.grad is None) == (not p.requires_grad) for p in own.modules.parameters())


def test_a_bias_learns_even_if_its_matrix_is_frozen() -> None:
    own = case(tied=False, bias=True)
    own.modules.requires_grad_(False)
    own.head.bias.requires_grad_(True)
    twin = copy.deepcopy(own)
    by_rows(own)
    by_autograd(twin)
    assert own.head.bias.grad is not None
    assert_same(own, twin)


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_arithmetic_gives_the_gradients_of_autocast(tied: bool) -> None:
    """Weights and their gradients are float32; the products are not."""
    own = case(tied=tied, bias=True)
    twin = copy.deepcopy(own)
    with torch.autocast("cpu", torch.bfloat16):
        parts = own.hidden().split(ROWS)
        heads = [
            HiddenRows(part, layer_of(own.head, torch.bfloat16), own.head, weight)
            for part, weight in zip(parts, WEIGHTS, strict=True)
        ]
    for head in heads:
        give(head, STOPS)
    continue_backward(heads)
    with torch.autocast("cpu", torch.bfloat16):
        logits = twin.head(twin.hidden()).split(ROWS)
        assert logits[0].dtype == torch.bfloat16
        loss = WEIGHTS[0] * loss_of(logits[0]) + WEIGHTS[1] * loss_of(logits[1])
    loss.backward()
    assert_same(own, twin, TOLERANCE[torch.bfloat16])
    assert own.head.weight.grad is not None and own.head.weight.grad.dtype == torch.float32


def test_rows_without_a_gradient_have_that_of_zero() -> None:
    own = case(tied=False)
    heads = [HiddenRows(part, layer_of(own.head), own.head) for part in own.hidden().split(ROWS)]
    heads[0].add_gradient(slice(0, 2), torch.ones(2, VOCAB))
    continue_backward(heads)
    twin = case(tied=False)
    twin.head(twin.hidden())[:2].sum().backward()
    assert_same(own, twin)


def test_a_head_without_rows_gives_zero_gradients() -> None:
    """The batch of a rank without an example bears no loss, but goes through the backward pass with the others."""
    own = case(tied=False)
    empty = own.hidden()[:0]
    heads: list[HeadOutputs] = [HiddenRows(empty, layer_of(own.head), own.head), WholeLogits(own.head(empty))]
    for head in heads:
        assert head.logits(slice(0, 0)).shape == (0, VOCAB)
        head.add_gradient(slice(0, 0), torch.empty(0, VOCAB))
    continue_backward(heads)
    assert all(p.grad is not None and not p.grad.any() for p in own.modules.parameters())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_whole_logits_give_the_gradients_of_autograd(dtype: torch.dtype) -> None:
    own = case(bias=True, dtype=dtype)
    twin = copy.deepcopy(own)
    twin.modules.float()
    heads = [
        WholeLogits(part, weight) for part, weight in zip(own.head(own.hidden()).split(ROWS), WEIGHTS, strict=True)
    ]
    for head in heads:
        assert head.shape == (ROWS, VOCAB)
        assert not head.logits(slice(0, 2)).requires_grad and head.whole().requires_grad
        give(head, STOPS)
    continue_backward(heads)
    by_autograd(twin)
    assert_same(own, twin, TOLERANCE[dtype])
