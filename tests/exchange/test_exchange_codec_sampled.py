"""The sampled codec: draws are unbiased, reproducible, and less noisy than independent ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_l4.exchange.codecs import rows as codec_rows
from ray_l4.exchange.codecs.sampled import Sampled, _tokens_at
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.distillation import distillation
from ray_l4.losses.targets import DenseTargets
from tests.exchange.codec_fixtures import TEMPERATURE, codec, logits, predictions_of, round_trip, softened

DRAWS, REPEATS = 7, 4000
SIGMAS = 5
"""Tolerance in standard errors: for 40 tokens, a correct codec exceeds it for one in 40,000 seeds."""


def skewed(vocab: int, seed: int = 0) -> Tensor:
    """Draw the logits of one position, far from uniform."""
    return 3 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) - 40


def shares(logits_V: Tensor, num_draws: int, seed: int, repeats: int = REPEATS) -> Tensor:
    """Return each token's share of the draws at many positions with the same logits: (repeats, vocab)."""
    rows = logits_V.expand(repeats, -1)
    return (
        softened(round_trip(Sampled(num_draws, TEMPERATURE), predictions_of(qa=rows), seed)["qa"], rows).exp().double()
    )


def variances(probs: list[float], num_draws: int) -> list[float]:
    """Compute the variance of each token's share: in each stratum it is drawn with the fraction that it covers."""
    found, start = [], 0.0
    for p in probs:
        edges = [(max(start, i / num_draws), min(start + p, (i + 1) / num_draws)) for i in range(num_draws)]
        covered = [max(0.0, (stop - begin) * num_draws) for begin, stop in edges]
        found.append(sum(c * (1 - c) for c in covered) / num_draws**2)
        start += p
    return found


@pytest.mark.parametrize("num_draws", [1, DRAWS, 50])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shares_are_unbiased(num_draws: int, seed: int) -> None:
    """The mean over many draws is the distribution, to five standard errors for every token."""
    logits_V = skewed(40)
    probs_V = (logits_V.double() / TEMPERATURE).softmax(-1)[0]
    mean_V = shares(logits_V, num_draws, seed).mean(0)
    errors = torch.tensor(variances(probs_V.tolist(), num_draws), dtype=torch.float64).div(REPEATS).sqrt()
    assert ((mean_V - probs_V).abs() <= SIGMAS * errors + 1e-6).all()
    assert (errors > 0).sum() > 20, "most tokens are left to chance"


def test_the_check_detects_a_bias_of_one_percent() -> None:
    """The check above detects draws at a slightly different temperature."""
    logits_V = skewed(40)
    probs_V = (logits_V.double() / (1.01 * TEMPERATURE)).softmax(-1)[0]
    mean_V = torch.stack([shares(logits_V, 50, seed).mean(0) for seed in range(3)]).mean(0)
    errors = torch.tensor(variances(probs_V.tolist(), 50), dtype=torch.float64).div(3 * REPEATS).sqrt()
    assert ((mean_V - probs_V).abs() > SIGMAS * errors + 1e-6).any()


def test_the_gradient_is_unbiased() -> None:
    """The mean of the divergence's gradients over many steps with different draws is the exact gradient."""
    teacher_V, student_V = skewed(40), skewed(40, seed=1)
    students = student_V.expand(REPEATS, -1).clone().requires_grad_()
    rows = teacher_V.expand(REPEATS, -1)
    drawn = softened(round_trip(Sampled(DRAWS, TEMPERATURE), predictions_of(qa=rows), 4)["qa"], rows)
    distillation(students, drawn, TEMPERATURE, 1.0).backward()
    exact_V = student_V.clone().requires_grad_()
    distillation(exact_V, softened(DenseTargets(teacher_V), student_V), TEMPERATURE, 1.0).backward()
    assert students.grad is not None and exact_V.grad is not None
    spread_V = students.grad.std(0) / math.sqrt(REPEATS)
    assert ((students.grad.mean(0) - exact_V.grad[0]).abs() <= SIGMAS * spread_V + 1e-5).all()
    assert (students.grad - exact_V.grad).norm(dim=1).min() > 0.1, "a single step's gradient is far from it"


def test_the_loss_is_overestimated_on_average() -> None:
    """A few draws have less entropy than the distribution, so the loss does not estimate the divergence."""
    teacher_V, student_V = skewed(40), skewed(40, seed=1)
    rows, students = teacher_V.expand(REPEATS, -1), student_V.expand(REPEATS, -1)
    drawn = softened(round_trip(Sampled(DRAWS, TEMPERATURE), predictions_of(qa=rows), 4)["qa"], rows)
    estimate = distillation(students, drawn, TEMPERATURE, REPEATS)
    exact = distillation(student_V, softened(DenseTargets(teacher_V), student_V), TEMPERATURE, 1.0)
    assert estimate > 1.05 * exact


@pytest.mark.parametrize("num_draws", [DRAWS, 50])
def test_stratified_draws_are_less_noisy_than_independent_ones(num_draws: int) -> None:
    logits_V = skewed(40)
    probs_V = (logits_V.double() / TEMPERATURE).softmax(-1)[0]
    noise = (shares(logits_V, num_draws, 5) - probs_V).square().mean(0)
    independent = probs_V * (1 - probs_V) / num_draws
    assert noise.sum() < 0.8 * independent.sum()
    expected = torch.tensor(variances(probs_V.tolist(), num_draws), dtype=torch.float64)
    torch.testing.assert_close(noise.sum(), expected.sum(), rtol=0.05, atol=0)


@given(logits, st.integers(1, 60), st.integers(0, 2**63 - 1))
def test_tokens_of_probability_zero_are_never_drawn(logits_KV: np.ndarray, num_draws: int, seed: int) -> None:
    """A token of probability p is drawn from floor(n p) - 1 to ceil(n p) + 1 times."""
    teacher_KV = torch.from_numpy(logits_KV)
    ids_KS = Sampled(num_draws, TEMPERATURE).encode(predictions_of(qa=teacher_KV), seed).tensors["qa/ids"]
    assert ids_KS.shape == (len(teacher_KV), num_draws) and ids_KS.dtype == torch.int32
    expected_KV = (teacher_KV / TEMPERATURE).softmax(-1) * num_draws
    counts_KV = torch.zeros_like(expected_KV).scatter_add_(1, ids_KS.long(), torch.ones(ids_KS.shape))
    assert (counts_KV.sum(-1) == num_draws).all()
    assert (counts_KV[expected_KV == 0] == 0).all()
    assert (counts_KV >= (expected_KV - 1e-3).floor() - 1).all()
    assert (counts_KV <= (expected_KV + 1e-3).ceil() + 1).all()


def test_a_point_on_a_boundary_selects_the_token_that_starts_there() -> None:
    """So tokens of probability 0 are never selected, and a point rounded up to the end selects the last token."""
    log_probs_MV = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).log()
    points_MS = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]], dtype=torch.float64)
    assert _tokens_at(points_MS, log_probs_MV).tolist() == [[1, 1, 3, 3, 3]]


def test_draws_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = predictions_of(qa=skewed(40).expand(30, -1), lm=skewed(40).expand(30, -1))
    own = Sampled(DRAWS, TEMPERATURE)
    state = torch.get_rng_state()
    first = own.encode(predictions, 8).tensors
    assert torch.equal(torch.get_rng_state(), state), "the dropout of the next step must not depend on the codec"
    torch.manual_seed(99)
    monkeypatch.setattr(codec_rows, "CHUNK_ELEMENTS", 40)  # one row at a time
    again = own.encode(predictions, 8).tensors
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = own.encode(predictions, 9).tensors
    assert not torch.equal(first["qa/ids"], other["qa/ids"])
    assert not torch.equal(first["qa/ids"], first["lm/ids"]), "heads are drawn apart"
    assert not torch.equal(first["qa/ids"][0], first["qa/ids"][1]), "and so are positions"


def test_rare_tokens_are_drawn_at_the_right_rate() -> None:
    """50,000 tokens of 1e-5 each and a likely one: a float32 running sum would skip or double some of them."""
    logits_V = torch.full((1, 50_000), 0.0)
    logits_V[0, 0] = TEMPERATURE * math.log(49_999)  # half of all probability
    drawn = round_trip(Sampled(1000, TEMPERATURE), Predictions({"qa": logits_V.expand(40, -1)}), 0)["qa"]
    counts_V = drawn.log_probs(slice(0, 40), logits_V.expand(40, -1), TEMPERATURE).exp().sum(0) * 1000
    assert counts_V[0].item() == pytest.approx(40 * 500, abs=1)
    quarters = counts_V[1:].split(12_500)
    for quarter in quarters:
        assert quarter.sum().item() == pytest.approx(40 * 125, abs=40)


def test_the_largest_seed_works() -> None:
    assert codec("sampled 7").encode(predictions_of(qa=torch.zeros(2, 5)), 2**63 - 1).num_bytes == 2 * 7 * 4
