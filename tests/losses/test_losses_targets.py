"""Targets that contain only part of the vocabulary, compared with plain twins of their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_twins import DTYPES, assert_gradient, random_logits, softmax, some_examples
from torch import Tensor

from ray_l4.losses.distillation import Direction
from ray_l4.losses.objective import Denominators, ObjectiveSpec, head_objective
from ray_l4.losses.targets import (
    DenseTargets,
    FactoredTargets,
    ProbabilityTargets,
    SampledTargets,
    Targets,
    TopKTargets,
)

T = 2.0
directions = pytest.mark.parametrize("direction", ["forward", "reverse"])
sizes = {
    "rows": st.integers(0, 6),
    "vocab": st.integers(2, 12),
    "k": st.integers(1, 14),
    "seed": st.integers(0, 2**20),
    "dtype": st.sampled_from(DTYPES),
}


def top_k(logits_KV: Tensor, k: int) -> TopKTargets:
    """Build targets from the k largest softened log-probabilities and the rest, computed in float64."""
    log_probs_KV = (logits_KV.double() / T).log_softmax(-1)
    largest, ids = log_probs_KV.topk(min(k, logits_KV.shape[1]), dim=-1)
    rest = log_probs_KV.scatter(-1, ids, -math.inf).logsumexp(-1)
    return TopKTargets(ids.int(), largest.float(), rest.float(), T)


def outcomes_twin(logits_KV: Tensor, targets: TopKTargets, direction: Direction) -> tuple[float, Tensor]:
    """Return T^2 KL over k + 1 outcomes per position, and its gradient by autograd."""
    logits = logits_KV.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(logits)):
        ids = targets.ids_KJ[row].tolist()
        student = (logits[row] / T).softmax(-1)
        others = [v for v in range(len(student)) if v not in ids]
        known = [student[v] for v in ids]
        q = torch.stack([*known, *([student[others].sum()] if others else [])])
        log_p = torch.cat([targets.log_probs_KJ[row], targets.rest_K[row, None]])[: len(q)].double()
        left, right = (log_p, q.log()) if direction == "forward" else (q.log(), log_p)
        total = total + T**2 * (left.exp() * (left - right)).sum() / len(logits)
    gradient = torch.autograd.grad(total, logits)[0] if len(logits) else torch.zeros_like(logits)
    return total.item(), gradient


def taught(logits_KV: Tensor, teachers: Sequence[Targets], direction: Direction = "forward") -> tuple[float, Tensor]:
    """Return value and gradient of the objective's distillation alone."""
    logits = logits_KV.detach().requires_grad_()
    loss = head_objective(
        logits,
        torch.zeros(len(logits), dtype=torch.long),
        torch.zeros(len(logits)),
        len(logits),
        teachers,
        ObjectiveSpec(1.0, T, direction),
        Denominators(nll=0.0, kd=float(len(logits))),
    )
    return loss.kd.item(), torch.autograd.grad(loss.total, logits)[0]


@directions
@some_examples
@given(**sizes)
def test_topk_is_the_divergence_over_k_plus_one_outcomes(
    direction: Direction, rows: int, vocab: int, k: int, seed: int, dtype: torch.dtype
) -> None:
    """Both the value and the gradient of every logit, although the loss covers the whole vocabulary."""
    student = random_logits(rows, vocab, seed, dtype)
    targets = top_k(random_logits(rows, vocab, seed + 1), k)
    value, gradient = taught(student, [targets], direction)
    expected, slope = outcomes_twin(student, targets, direction)
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert_gradient(gradient, slope, scale=10)


def test_a_divergence_truncated_to_k_tokens_would_differ() -> None:
    """The student agrees on the two largest and on the mass of the rest, so there is nothing to learn."""
    teacher = torch.tensor([[3.0, 2.0, 0.0, -1.0, -2.0]])
    student = torch.tensor([[3.0, 2.0, -2.0, 0.0, -1.0]])
    value, gradient = taught(student, [top_k(teacher, 2)])
    assert value == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(gradient, torch.zeros(1, 5), rtol=0, atol=1e-6)
    cut_off = student.clone().requires_grad_()
    known = (teacher / T).softmax(-1)[:, :2]
    (-(known * (cut_off / T).log_softmax(-1)[:, :2]).sum()).backward()
    assert cut_off.grad is not None and (cut_off.grad[:, 2:] > 0.01).all(), (
        "a truncated divergence would lower the whole tail"
    )


@directions
def test_with_all_entries_known_the_divergence_is_exact(direction: Direction) -> None:
    student, teacher = random_logits(4, 7, 0), random_logits(4, 7, 1)
    for k in (7, 8):
        value, gradient = taught(student, [top_k(teacher, k)], direction)
        expected, slope = taught(student, [DenseTargets(teacher)], direction)
        assert value == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


@directions
def test_a_tail_with_hardly_any_mass_is_kept(direction: Direction) -> None:
    """1 minus the mass of the largest token would be 0 here, and its logarithm infinite."""
    teacher = torch.tensor([[400.0, 0.0, 0.0]])
    targets = top_k(teacher, 1)
    assert targets.rest_K.item() == pytest.approx(-200 + math.log(2), rel=1e-6)
    value, gradient = taught(torch.tensor([[1.0, 0.0, 0.0]]), [targets], direction)
    assert math.isfinite(value) and gradient.isfinite().all() and gradient.abs().sum() > 0


@given(st.integers(2, 4), st.integers(0, 2**20))
@some_examples
def test_several_teachers_give_the_mean_of_their_gradients(count: int, seed: int) -> None:
    """Even if the teachers' targets have different tokens or different forms."""
    student = random_logits(5, 9, seed)
    draw = torch.Generator().manual_seed(seed)
    kinds: list[Targets] = [
        top_k(random_logits(5, 9, seed + 1), 3),
        SampledTargets(torch.randint(9, (5, 6), generator=draw), T),
        top_k(random_logits(5, 9, seed + 2), 1),
        ProbabilityTargets(random_logits(5, 9, seed + 3).softmax(-1), T),
    ][:count]
    _, together = taught(student, kinds)
    alone = torch.stack([taught(student, [own])[1] for own in kinds])
    torch.testing.assert_close(together, alone.mean(0), rtol=1e-4, atol=1e-6)


@some_examples
@given(**sizes)
def test_drawn_tokens_have_their_share_of_the_draws(
    rows: int, vocab: int, k: int, seed: int, dtype: torch.dtype
) -> None:
    """The gradient is T (q - share) / K for every token, drawn or not."""
    student = random_logits(rows, vocab, seed, dtype)
    ids_KS = torch.randint(vocab, (rows, k), generator=torch.Generator().manual_seed(seed))
    value, gradient = taught(student, [SampledTargets(ids_KS.int(), T)])
    slope, expected = torch.zeros(rows, vocab, dtype=torch.float64), 0.0
    for row, logits in enumerate(student.double().tolist()):
        q = softmax(logits, T)
        for v in range(vocab):
            share = ids_KS[row].tolist().count(v) / k
            slope[row, v] = T * (q[v] - share) / rows
            expected += T**2 * (share * math.log(share / q[v]) if share else 0.0) / rows
    assert_gradient(gradient, slope, scale=T)
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_probabilities_count_in_proportion_and_may_be_zero() -> None:
    targets = ProbabilityTargets(torch.tensor([[2.0, 0.0, 6.0]]), T)
    log_probs = targets.log_probs(slice(0, 1), torch.zeros(1, 3), T)
    torch.testing.assert_close(log_probs, torch.tensor([[0.25, 0.0, 0.75]]).log())
    value, gradient = taught(torch.zeros(1, 3), [targets])
    assert math.isfinite(value)
    torch.testing.assert_close(gradient, T * (torch.full((1, 3), 1 / 3) - torch.tensor([[0.25, 0.0, 0.75]])))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_factors_are_multiplied_for_the_rows_asked_for(dtype: torch.dtype, with_bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 4, generator=draw).to(dtype) for size in (6, 9))
    bias = torch.randn(9, generator=draw).to(dtype) if with_bias else None
    targets = FactoredTargets(hidden, weight, bias)
    logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    expected = DenseTargets(logits).log_probs(slice(2, 5), torch.zeros(3, 9), T)
    received = targets.log_probs(slice(2, 5), torch.zeros(3, 9), T)
    assert received.dtype == torch.float32
    torch.testing.assert_close(received, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)


def test_another_temperature_is_refused() -> None:
    """Targets that are softened twice, or not enough, would silently change the loss."""
    draws, probs = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 3)
    for targets in (top_k(probs, 1), SampledTargets(draws, T), ProbabilityTargets(probs, T)):
        with pytest.raises(ValueError, match="computed at temperature 2; they cannot be converted to 1"):
            targets.log_probs(slice(0, 1), torch.zeros(1, 3), 1.0)
