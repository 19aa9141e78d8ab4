"""Weighted negative log-likelihood, compared with a plain double loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_twins import DTYPES, assert_gradient, nll_twin, random_logits, some_examples

from ray_l4.losses.nll import at_least_float32, nll


@some_examples
@given(rows=st.integers(1, 7), vocab=st.integers(1, 13), seed=st.integers(0, 2**20), dtype=st.sampled_from(DTYPES))
def test_value_and_gradient_equal_the_plain_twin(rows: int, vocab: int, seed: int, dtype: torch.dtype) -> None:
    logits = random_logits(rows, vocab, seed, dtype).requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocab, (rows,), generator=generator)
    weights = 5 * torch.rand(rows, generator=generator)

    loss = nll(logits, targets, weights, denominator=17.0)
    (gradient,) = torch.autograd.grad(loss, logits)

    value, expected = nll_twin(logits, targets, weights, 17.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert gradient.dtype == dtype
    assert_gradient(gradient, expected, scale=5 / 17)


def test_worked_weights_enter_numerator_and_denominator() -> None:
    # Uniform logits: the loss is log V for any weights if the denominator is their sum.
    targets, weights = torch.arange(9), torch.tensor([1.0] * 7 + [5.0, 1.0])
    assert weights.sum() == 13  # REFERENCE.md#worked-values: one example with seven ordinary tokens, ANS and EOS
    loss = nll(torch.zeros(9, 11), targets, weights, denominator=13.0)
    assert loss.item() == pytest.approx(math.log(11))


def test_parts_of_a_step_add_up_when_they_share_the_denominator() -> None:
    logits, targets, weights = random_logits(9, 6, 0), torch.arange(9) % 6, torch.linspace(0.5, 5, 9)
    denominator = weights.sum().item()
    whole = nll(logits, targets, weights, denominator)
    parts = [nll(logits[rows], targets[rows], weights[rows], denominator) for rows in (slice(0, 2), slice(2, 9))]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize(("rows", "weight"), [(0, 1.0), (4, 0.0)])
def test_nothing_to_learn_is_exactly_zero(rows: int, weight: float) -> None:
    logits = random_logits(rows, 5, 0).requires_grad_()
    loss = nll(logits, torch.zeros(rows, dtype=torch.long), torch.full((rows,), weight), denominator=0.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros(rows, 5))


def test_a_row_of_weight_zero_gets_no_gradient_and_changes_no_other() -> None:
    logits = random_logits(3, 5, 1).requires_grad_()
    targets = torch.tensor([1, 2, 3])
    (gradient,) = torch.autograd.grad(nll(logits, targets, torch.tensor([1.0, 0.0, 2.0]), 3.0), logits)
    kept = [0, 2]
    (alone,) = torch.autograd.grad(nll(logits[kept], targets[kept], torch.tensor([1.0, 2.0]), 3.0), logits)
    assert gradient[1].abs().max() == 0.0
    assert torch.equal(gradient, alone)


def test_arithmetic_is_never_narrower_than_float32() -> None:
    narrow = random_logits(2, 3, 0, torch.bfloat16)
    assert at_least_float32(narrow).dtype == torch.float32
    assert at_least_float32(narrow.double()).dtype == torch.float64
    exact = nll(narrow.float(), torch.tensor([0, 1]), torch.ones(2), 2.0)
    assert torch.equal(nll(narrow, torch.tensor([0, 1]), torch.ones(2), 2.0), exact)
