"""Distillation compared with a plain double loop, its identities, and cases in which a naive form gives NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_twins import (
    DTYPES,
    LOSS_ERROR,
    assert_gradient,
    distillation_twin,
    mean_probs_twin,
    mixed_twin,
    random_logits,
    reverse_twin,
    some_examples,
)

from ray_l4.losses.distillation import Direction, distillation
from ray_l4.losses.distillation import mean_log_probs as mean_of_softened
from ray_l4.losses.targets import DenseTargets

shapes = {
    "rows": st.integers(1, 6),
    "vocab": st.integers(2, 11),
    "num_teachers": st.integers(1, 4),
    "temperature": st.sampled_from([0.5, 1.0, 2.0, 3.7]),
    "seed": st.integers(0, 2**20),
}


def mean_log_probs(teachers: list[torch.Tensor], temperature: float) -> torch.Tensor:
    """Average teachers as the objective does: each is softened first."""
    nobody = torch.empty(0)
    return mean_of_softened([DenseTargets(t).log_probs(slice(None), nobody, temperature) for t in teachers])


def random_teachers(count: int, rows: int, vocab: int, seed: int) -> list[torch.Tensor]:
    return [random_logits(rows, vocab, 7919 * seed + i + 1).log_softmax(dim=-1) for i in range(count)]


@some_examples
@given(**shapes, dtype=st.sampled_from(DTYPES))
def test_value_and_gradient_equal_the_plain_twin(
    rows: int, vocab: int, num_teachers: int, temperature: float, seed: int, dtype: torch.dtype
) -> None:
    logits = random_logits(rows, vocab, seed, dtype).requires_grad_()
    teachers = random_teachers(num_teachers, rows, vocab, seed)

    loss = distillation(logits, mean_log_probs(teachers, temperature), temperature, denominator=9.0)
    (gradient,) = torch.autograd.grad(loss, logits)

    value, expected = distillation_twin(logits, teachers, temperature, 9.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value, rel=1e-4, abs=LOSS_ERROR)
    assert gradient.dtype == dtype
    assert_gradient(gradient, expected, scale=temperature / 9)


@some_examples
@given(**shapes, dtype=st.sampled_from(DTYPES))
def test_the_reverse_direction_equals_its_plain_twin(
    rows: int, vocab: int, num_teachers: int, temperature: float, seed: int, dtype: torch.dtype
) -> None:
    logits = random_logits(rows, vocab, seed, dtype).requires_grad_()
    teachers = random_teachers(num_teachers, rows, vocab, seed)
    loss = distillation(logits, mean_log_probs(teachers, temperature), temperature, 9.0, "reverse")
    (gradient,) = torch.autograd.grad(loss, logits)
    value, expected = reverse_twin(logits, teachers, temperature, 9.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value, rel=1e-4, abs=LOSS_ERROR)
    # Log ratios are as large as the range of the logits divided by the temperature.
    assert_gradient(gradient, expected, scale=30 / 9)


@some_examples
@given(**shapes, beta=st.floats(0.01, 0.99), dtype=st.sampled_from(DTYPES))
def test_the_generalised_divergence_equals_its_plain_twin(
    rows: int, vocab: int, num_teachers: int, temperature: float, seed: int, beta: float, dtype: torch.dtype
) -> None:
    logits = random_logits(rows, vocab, seed, dtype).requires_grad_()
    teachers = random_teachers(num_teachers, rows, vocab, seed)
    loss = distillation(logits, mean_log_probs(teachers, temperature), temperature, 9.0, beta)
    (gradient,) = torch.autograd.grad(loss, logits)
    value, expected = mixed_twin(logits, teachers, temperature, 9.0, beta)
    assert loss.item() == pytest.approx(value, rel=1e-4, abs=LOSS_ERROR)
    assert_gradient(gradient, expected, scale=30 / 9)


def test_the_generalised_divergence_is_bounded_and_near_its_ends_one_of_the_two() -> None:
    """GKD: divided by beta, it tends to the forward divergence at 0; divided by 1 - beta, to the reverse one at 1."""
    own, peer = (torch.tensor([values]).log() for values in ([0.5, 0.3, 0.2], [0.1, 0.2, 0.7]))
    forward, reverse = (distillation(own, peer, 1.0, 1.0, way).item() for way in ("forward", "reverse"))
    assert distillation(own, peer, 1.0, 1.0, 1e-4).item() / 1e-4 == pytest.approx(forward, rel=1e-2)
    assert distillation(own, peer, 1.0, 1.0, 1 - 1e-4).item() / 1e-4 == pytest.approx(reverse, rel=1e-2)
    disjoint = [torch.tensor([values]).log() for values in ([1.0, 0.0], [0.0, 1.0])]
    assert distillation(disjoint[0], disjoint[1], 1.0, 1.0, 0.5).item() == pytest.approx(math.log(2), rel=1e-5)
    assert distillation(own, own, 1.0, 1.0, 0.5).item() == pytest.approx(0.0, abs=1e-7)


def test_the_reverse_direction_may_ignore_tokens_that_the_teacher_considers_possible() -> None:
    """Mode seeking: a student certain of one of the teacher's two tokens is closer in reverse than forward."""
    teacher = torch.tensor([[0.5, 0.5]]).log()
    certain = torch.tensor([[0.999, 0.001]]).log()
    forward, reverse = (distillation(certain, teacher, 1.0, 1.0, way).item() for way in ("forward", "reverse"))
    assert forward == pytest.approx(0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001), rel=1e-5)
    assert reverse == pytest.approx(0.999 * math.log(0.999 / 0.5) + 0.001 * math.log(0.001 / 0.5), rel=1e-5)
    assert reverse < forward


@pytest.mark.parametrize("num_teachers", [1, 2])
def test_in_reverse_tokens_that_the_student_excludes_contribute_nothing(num_teachers: int) -> None:
    teacher = torch.tensor([[0.4, 0.3, 0.3]]).log()
    logits = torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
    loss = distillation(logits, mean_log_probs([teacher] * num_teachers, 1.0), 1.0, 1.0, "reverse")
    (gradient,) = torch.autograd.grad(loss, logits)
    q = [math.exp(1) / (math.exp(1) + 1), 1 / (math.exp(1) + 1)]
    assert loss.item() == pytest.approx(q[0] * math.log(q[0] / 0.4) + q[1] * math.log(q[1] / 0.3), rel=1e-5)
    assert gradient.isfinite().all()
    assert gradient[0, 2] == 0.0


@some_examples
@given(**shapes)
def test_mean_is_the_mean_of_softened_probabilities(
    rows: int, vocab: int, num_teachers: int, temperature: float, seed: int
) -> None:
    teachers = random_teachers(num_teachers, rows, vocab, seed)
    mixed = mean_log_probs(teachers, temperature)
    expected = torch.tensor(mean_probs_twin(teachers, temperature))
    torch.testing.assert_close(mixed.exp(), expected, rtol=2e-5, atol=1e-7)
    # A constant may be added to a row: centred log-probabilities give the same mean.
    shifted = mean_log_probs([teacher - teacher.amax(dim=-1, keepdim=True) for teacher in teachers], temperature)
    torch.testing.assert_close(shifted, mixed, rtol=1e-5, atol=1e-5)


@some_examples
@given(**shapes)
def test_several_teachers_give_the_average_of_the_single_gradients(
    rows: int, vocab: int, num_teachers: int, temperature: float, seed: int
) -> None:
    logits = random_logits(rows, vocab, seed).double().requires_grad_()
    teachers = [teacher.double() for teacher in random_teachers(num_teachers, rows, vocab, seed)]

    def gradient(of: list[torch.Tensor]) -> torch.Tensor:
        return torch.autograd.grad(distillation(logits, mean_log_probs(of, temperature), temperature, 3.0), logits)[0]

    average = torch.stack([gradient([teacher]) for teacher in teachers]).mean(dim=0)
    torch.testing.assert_close(gradient(teachers), average, rtol=1e-10, atol=1e-12)


def test_worked_value() -> None:
    logits, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.5]]).log()
    assert distillation(logits, teacher, 2.0, 1.0).item() == pytest.approx(0.4804580, abs=5e-7)
    exact = distillation(logits.double(), teacher.double(), 2.0, 1.0)
    assert exact.item() == pytest.approx(0.4804580, abs=5e-8)


def test_direction_is_from_the_teacher_and_zero_for_equal_peers() -> None:
    peer, own = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)  # KL(peer || self); the reverse is 0.5108
    assert distillation(own.log(), peer.log(), 1.0, 1.0).item() == pytest.approx(forward)
    assert distillation(own.log(), peer.log(), 1.0, 1.0, "reverse").item() == pytest.approx(0.5108, abs=1e-4)
    logits = random_logits(5, 11, 0)
    for way in ("forward", "reverse"):
        assert distillation(logits, mean_log_probs([logits], 2.0), 2.0, 5.0, way).item() == 0.0


def test_gradient_equals_that_of_cross_entropy_with_soft_labels() -> None:
    """L4 writes a cross-entropy in section 3.2 and KL in eq. 6: the same gradient (REFERENCE.md#l4-choices row 6)."""
    logits = random_logits(4, 7, 3).double().requires_grad_()
    teacher = random_teachers(1, 4, 7, 3)[0].double()
    (ours,) = torch.autograd.grad(distillation(logits, teacher, 1.0, 4.0), logits)
    (theirs,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, teacher.exp()), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("way", ["forward", "reverse", 0.3])
def test_no_position_is_exactly_zero_and_not_nan(way: Direction) -> None:
    logits = random_logits(3, 5, 0).requires_grad_()
    teacher = mean_log_probs([torch.zeros(0, 5), torch.zeros(0, 5)], 2.0)
    loss = distillation(logits[:0], teacher, 2.0, 0.0, way)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros(3, 5))


@pytest.mark.parametrize("num_teachers", [1, 2])
def test_tokens_of_probability_zero_give_no_nan(num_teachers: int) -> None:
    teacher = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]).log()
    logits = random_logits(2, 3, 0).requires_grad_()
    loss = distillation(logits, mean_log_probs([teacher] * num_teachers, 2.0), 2.0, 2.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    value, expected = distillation_twin(logits, [teacher], 2.0, 2.0)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert_gradient(gradient, expected, scale=1.0)


def test_a_token_excluded_on_both_sides_contributes_nothing() -> None:
    logits = torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    loss = distillation(logits, teacher, 1.0, 1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(distillation(logits[:, :2], teacher[:, :2], 1.0, 1.0).item())
    assert gradient.isfinite().all()
    assert gradient[0, 2] == 0.0


def test_teachers_are_constants() -> None:
    teacher = random_teachers(1, 2, 3, 0)[0].requires_grad_()
    logits = random_logits(2, 3, 0).requires_grad_()
    assert not mean_log_probs([teacher, teacher], 2.0).requires_grad
    distillation(logits, teacher, 1.0, 1.0).backward()
    assert teacher.grad is None
    assert logits.grad is not None


def test_a_different_vocabulary_is_refused_even_where_it_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 1\)"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 1), 1.0, 1.0)
