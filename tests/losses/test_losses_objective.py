"""One head's objective on labels and teachers, compared with plain twins; the chunked form with the plain one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_twins import (
    DTYPES,
    LOSS_ERROR,
    GivenLogits,
    assert_gradient,
    distillation_twin,
    mixed_twin,
    nll_twin,
    random_logits,
    reverse_twin,
    some_examples,
)
from torch import Tensor

from ray_l4.losses import head_gradient as by_hand
from ray_l4.losses.chunked import row_chunks
from ray_l4.losses.distillation import Direction
from ray_l4.losses.head_gradient import head_gradient
from ray_l4.losses.objective import Denominators, HeadLoss, ObjectiveSpec, head_objective
from ray_l4.losses.targets import DenseTargets, SampledTargets

SPEC = ObjectiveSpec(distillation_weight=0.2, temperature=2.0)
MIXED = Denominators(nll=11.0, kd=7.0)

SPECS = [
    ObjectiveSpec(0.2, 2.0),
    ObjectiveSpec(1.0, 0.5, "reverse"),
    ObjectiveSpec(30.0, 0.5, "forward", "vocabulary"),
    ObjectiveSpec(7.0, 1.5, "reverse", "vocabulary"),
    ObjectiveSpec(1.0, 2.0, 0.5),
    ObjectiveSpec(3.0, 1.0, 0.1),
    ObjectiveSpec(30.0, 0.5, 0.9, "vocabulary"),
]


def twin_of(direction: Direction) -> Callable[[Tensor, list[Tensor], float, float], tuple[float, Tensor]]:
    if isinstance(direction, float):
        return partial(mixed_twin, beta=direction)
    return distillation_twin if direction == "forward" else reverse_twin


heads = {
    "rows": st.integers(0, 9),
    "vocab": st.integers(2, 13),
    "share": st.floats(0, 1),
    "num_teachers": st.integers(0, 3),
    "seed": st.integers(0, 2**20),
    "dtype": st.sampled_from(DTYPES),
}


def arguments(rows: int, vocab: int, share: float, num_teachers: int, seed: int, dtype: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(seed)
    num_distilled = round(share * rows)
    return {
        "logits_NV": random_logits(rows, vocab, seed, dtype).requires_grad_(),
        "targets_N": torch.randint(vocab, (rows,), generator=generator),
        "weights_N": torch.randint(0, 6, (rows,), generator=generator).float(),
        "num_distilled": num_distilled,
        "teachers": [
            DenseTargets(random_logits(num_distilled, vocab, seed + 1 + i).log_softmax(-1)) for i in range(num_teachers)
        ],
        "spec": SPEC,
        "denominators": MIXED,
    }


def tensors(given: dict) -> list[Tensor]:
    return [teacher.log_probs_KV for teacher in given["teachers"]]


def plain_gradient(given: dict) -> tuple[HeadLoss, Tensor]:
    loss = head_objective(**given)
    return loss, torch.autograd.grad(loss.total, given["logits_NV"])[0]


def gradient_by_hand(given: dict) -> tuple[HeadLoss, Tensor]:
    head = GivenLogits(given["logits_NV"])
    return head_gradient(head, **{name: own for name, own in given.items() if name != "logits_NV"}), head.gradient_NV


def in_chunks(given: dict, rows: int) -> tuple[HeadLoss, Tensor]:
    """Compute the gradient with so many rows per chunk, of which the cache has one."""
    vocab = given["logits_NV"].shape[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_hand, "CHUNK_ELEMENTS", rows * vocab)
        patch.setattr(by_hand, "CACHED_ELEMENTS", vocab)
        patch.setattr(by_hand, "row_chunks", lambda *sizes: row_chunks(*sizes[:3], 1))
        return gradient_by_hand(given)


@some_examples
@given(**heads)
def test_value_and_gradient_equal_the_plain_twins(**head: object) -> None:
    given_ = arguments(**head)
    loss, gradient = plain_gradient(given_)
    logits, count = given_["logits_NV"], given_["num_distilled"]

    value, expected = nll_twin(logits, given_["targets_N"], given_["weights_N"], MIXED.nll)
    assert loss.nll.item() == pytest.approx(value, rel=1e-5, abs=1e-6)
    divergence = 0.0
    if given_["teachers"]:
        divergence, slope = distillation_twin(logits[:count], tensors(given_), SPEC.temperature, MIXED.kd)
        expected[:count] += SPEC.distillation_weight * slope
    assert loss.kd.item() == pytest.approx(divergence, rel=1e-4, abs=LOSS_ERROR)
    assert loss.total.item() == pytest.approx(value + 0.2 * divergence, rel=1e-5, abs=LOSS_ERROR)
    assert_gradient(gradient, expected, scale=5 / MIXED.nll)
    assert not loss.nll.requires_grad
    assert not loss.kd.requires_grad


@some_examples
@given(**heads, spec=st.sampled_from(SPECS))
def test_direction_and_average_equal_the_plain_twins(spec: ObjectiveSpec, **head: object) -> None:
    given_ = arguments(**head) | {"spec": spec}
    loss, gradient = plain_gradient(given_)
    logits, count = given_["logits_NV"], given_["num_distilled"]
    value, expected = nll_twin(logits, given_["targets_N"], given_["weights_N"], MIXED.nll)
    divergence, share = 0.0, spec.distillation_weight
    if spec.average == "vocabulary":
        share /= logits.shape[1]
    if given_["teachers"]:
        twin = twin_of(spec.direction)
        divergence, slope = twin(logits[:count], tensors(given_), spec.temperature, MIXED.kd)
        expected[:count] += share * slope
    assert loss.kd.item() == pytest.approx(divergence, rel=1e-4, abs=2e-5), "the figure is per token in any case"
    assert loss.total.item() == pytest.approx(value + share * divergence, rel=1e-4, abs=1e-4)
    assert_gradient(gradient, expected, scale=(5 + 30 * share) / MIXED.kd)


@some_examples
@given(**heads, spec=st.sampled_from(SPECS), rows_per_chunk=st.integers(1, 4))
def test_direction_and_average_are_the_same_in_many_chunks(
    spec: ObjectiveSpec, rows_per_chunk: int, **head: object
) -> None:
    given_ = arguments(**head) | {"spec": spec}
    plain, expected = plain_gradient(given_)
    chunked, gradient = in_chunks(given_, rows_per_chunk)
    torch.testing.assert_close(torch.stack(tuple(chunked)), torch.stack(tuple(plain)), rtol=1e-5, atol=1e-5)
    # A bfloat16 may be rounded to the next one: they are 2^-7 of their value apart at most.
    rtol = 2**-7 if gradient.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(gradient, expected, rtol=rtol, atol=1e-5)


def test_the_vocabulary_s_share_is_that_of_the_released_code() -> None:
    """``kl_div`` of PyTorch, with ``reduction="mean"``, divides by positions and vocabulary entries.

    REFERENCE.md#l4-released.
    """
    given_ = arguments(6, 50, 1.0, 1, 0, torch.float32)
    given_ |= {"denominators": Denominators(nll=1.0, kd=6.0), "weights_N": torch.zeros(6)}
    loss = head_objective(**given_ | {"spec": ObjectiveSpec(0.2, 0.5, average="vocabulary")})
    log_q = (given_["logits_NV"] / 0.5).log_softmax(-1)
    p = (tensors(given_)[0] / 0.5).softmax(-1)
    released = 0.2 * 0.5**2 * torch.nn.functional.kl_div(log_q, p, reduction="none").mean()
    assert loss.total.item() == pytest.approx(released.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(0.2 * loss.kd.item() / 50, rel=1e-6)


@some_examples
@given(**heads)
def test_lambda_zero_is_bit_for_bit_the_loss_on_labels_and_still_measures(**head: object) -> None:
    given_ = arguments(**head)
    for form in (plain_gradient, gradient_by_hand):
        alone, expected = form(given_ | {"teachers": []})
        measured, gradient = form(given_ | {"spec": ObjectiveSpec(0.0, 2.0)})
        assert torch.equal(gradient, expected)
        assert torch.equal(measured.total, alone.total)
        assert torch.equal(measured.kd, form(given_)[0].kd)


@pytest.mark.parametrize("form", [plain_gradient, gradient_by_hand])
def test_lambda_zero_learns_even_where_the_divergence_is_infinite(form: Any) -> None:
    given_ = arguments(2, 3, 1.0, 1, 0, torch.float32) | {"spec": ObjectiveSpec(0.0, 2.0)}
    given_["targets_N"] = torch.tensor([0, 1])
    given_["logits_NV"] = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 1.0, 3.0]], requires_grad=True)
    loss, gradient = form(given_)
    assert loss.kd.item() == torch.inf
    assert loss.total.isfinite()
    assert gradient.isfinite().all()


def test_rows_beyond_the_distilled_ones_learn_from_labels_alone() -> None:
    given_ = arguments(6, 5, 0.5, 2, 0, torch.float32)
    _, with_teachers = plain_gradient(given_)
    _, without = plain_gradient(given_ | {"teachers": []})
    assert torch.equal(with_teachers[3:], without[3:])
    assert not torch.equal(with_teachers[:3], without[:3])


def test_dropped_labels_leave_the_distillation_alone() -> None:
    """Eq. 12 read literally: no labels on current rows of a later task, teachers unchanged."""
    given_ = arguments(4, 5, 1.0, 1, 0, torch.float32) | {"weights_N": torch.zeros(4)}
    loss, gradient = plain_gradient(given_ | {"denominators": Denominators(nll=0.0, kd=4.0)})
    _, slope = distillation_twin(given_["logits_NV"], tensors(given_), 2.0, 4.0)
    assert loss.nll.item() == 0.0
    assert_gradient(gradient, 0.2 * slope, scale=0.1)


def test_a_batch_of_replay_alone_has_no_divergence_and_no_nan() -> None:
    given_ = arguments(4, 5, 0.0, 2, 0, torch.float32) | {"denominators": Denominators(nll=4.0, kd=0.0)}
    for form in (plain_gradient, gradient_by_hand):
        loss, gradient = form(given_)
        assert loss.kd.item() == 0.0
        assert loss.total.item() == loss.nll.item() > 0
        assert torch.equal(gradient, form(given_ | {"teachers": []})[1])


@some_examples
@given(**heads)
def test_the_gradient_by_hand_equals_the_plain_form(**head: object) -> None:
    given_ = arguments(**head)
    plain, expected = plain_gradient(given_)
    found, gradient = gradient_by_hand(given_)
    torch.testing.assert_close(torch.stack(tuple(found)), torch.stack(tuple(plain)), rtol=1e-6, atol=LOSS_ERROR)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@some_examples
@given(**heads, spec=st.sampled_from(SPECS))
def test_equal_peers_have_no_divergence_at_all(spec: ObjectiveSpec, **head: object) -> None:
    """Not one that is merely small: rounding must not push equal peers apart."""
    given_ = arguments(**head)
    rows = given_["logits_NV"].detach()[: given_["num_distilled"]]
    found, gradient = gradient_by_hand(given_ | {"teachers": [DenseTargets(rows.clone())], "spec": spec})
    alone, expected = gradient_by_hand(given_ | {"teachers": []})
    assert found.kd.item() == 0.0
    assert torch.equal(found.total, alone.total)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


@some_examples
@given(**heads)
def test_tokens_of_probability_zero_add_nothing(**head: object) -> None:
    given_ = arguments(**head) | {"num_distilled": 0, "teachers": []}
    rows, vocab = given_["logits_NV"].shape
    ids_KS = torch.arange(rows)[:, None] % vocab
    given_ |= {"num_distilled": rows, "teachers": [SampledTargets(ids_KS, SPEC.temperature)]}
    plain, expected = plain_gradient(given_)
    found, gradient = gradient_by_hand(given_)
    torch.testing.assert_close(torch.stack(tuple(found)), torch.stack(tuple(plain)), rtol=1e-6, atol=LOSS_ERROR)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@some_examples
@given(**heads, rows_per_chunk=st.integers(1, 4))
def test_many_chunks_equal_the_plain_form(rows_per_chunk: int, **head: object) -> None:
    given_ = arguments(**head)
    plain, expected = plain_gradient(given_)
    chunked, gradient = in_chunks(given_, rows_per_chunk)
    torch.testing.assert_close(torch.stack(tuple(chunked)), torch.stack(tuple(plain)), rtol=1e-6, atol=LOSS_ERROR)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", [plain_gradient, gradient_by_hand])
def test_misfits_are_refused(form: Any) -> None:
    fitting = arguments(4, 5, 0.5, 1, 0, torch.float32)
    with pytest.raises(ValueError, match="num_distilled is 5; expected 0 to 4"):
        form(fitting | {"num_distilled": 5})
    misfits = {(1, 5): "has predictions for 1 positions", (2, 1): r"expected \(2, 5\)", (2, 6): r"expected \(2, 5\)"}
    for shape, message in misfits.items():
        with pytest.raises(ValueError, match=f"teacher 1.*{message}"):
            form(fitting | {"teachers": [DenseTargets(torch.zeros(2, 5)), DenseTargets(torch.zeros(shape))]})
