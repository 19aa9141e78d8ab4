"""The quadratic penalty compared with hand-computed values, autograd and finite differences; merging; bytes."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_twins import some_examples
from torch import Tensor, nn

from ray_l4.errors import ModelError
from ray_l4.losses.importance import trainable
from ray_l4.losses.penalty import QuadraticPenalty

SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "scale": ()}


def scalars(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def parameters(tensors: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(tensor.clone()) for name, tensor in tensors.items()}


def random_tensors(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def random_penalty(seed: int, dtype: torch.dtype = torch.float64) -> QuadraticPenalty:
    importance = {name: tensor.abs() for name, tensor in random_tensors(seed).items()}
    return QuadraticPenalty(importance, random_tensors(seed + 1, dtype))


# Importance 2 and 1/2, anchor (1, -1).
BY_HAND = QuadraticPenalty(scalars(w=2, b=0.5), scalars(w=1, b=-1))


def test_value_and_gradient_by_hand() -> None:
    model = parameters(scalars(w=3, b=1))
    # 10 (2 * 2^2 + 0.5 * 2^2) = 100; 2 * 10 * (2 * 2, 0.5 * 2) = (80, 20).
    assert BY_HAND.value(model, 10.0).item() == 100
    model["w"].grad = torch.tensor(-1.0, dtype=torch.float64)  # the gradient is added to this; b has none yet
    assert BY_HAND.add_gradient(model, 10.0).item() == 100
    assert (model["w"].grad.item(), model["b"].grad.item()) == (79, 20)


def test_two_tasks_by_hand() -> None:
    weights = parameters(scalars(w=3, b=1))
    both = BY_HAND.merged(scalars(w=1, b=3), weights)
    # Importance (3, 3.5), anchor (3, 1): at (4, -1) it is 10 (3 * 1^2 + 3.5 * 2^2) = 170; after task two it is 0.
    assert both.value(scalars(w=4, b=-1), 10.0).item() == 170
    assert both.value(weights, 10.0).item() == 0
    with torch.no_grad():
        weights["w"].add_(100)  # training continues; the anchor does not move
    assert both.anchor["w"].item() == 3
    assert BY_HAND.importance["w"].item() == 2


def test_before_the_first_task_there_is_nothing_to_hold() -> None:
    model = parameters(scalars(w=3, b=1))
    assert QuadraticPenalty().value(model, 10.0).item() == 0
    assert QuadraticPenalty().add_gradient(model, 10.0).item() == 0
    assert model["w"].grad is None
    first = QuadraticPenalty().merged(scalars(w=2, b=0.5), parameters(scalars(w=1, b=-1)))
    assert first.value(model, 10.0).item() == 100


@some_examples
@given(seed=st.integers(0, 999), strength=st.floats(0, 100))
def test_gradient_equals_autograd_and_finite_differences(seed: int, strength: float) -> None:
    penalty, model = random_penalty(seed), parameters(random_tensors(seed + 2))
    value = penalty.value(model, strength)
    expected = torch.autograd.grad(value, list(model.values()))
    assert value.item() == pytest.approx(penalty.add_gradient(model, strength).item(), rel=1e-12)
    for (name, parameter), gradient in zip(model.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)
        step = torch.full_like(parameter, 0.5)  # central differences are exact for a quadratic
        up, down = (penalty.value(model | {name: parameter.detach() + s * step}, strength).item() for s in (1, -1))
        assert up - down == pytest.approx(gradient.sum().item(), rel=1e-9, abs=1e-9)


@some_examples
@given(seed=st.integers(0, 999))
def test_zero_at_the_anchor_and_nowhere_below(seed: int) -> None:
    penalty = random_penalty(seed)
    at_anchor = parameters(dict(penalty.anchor))
    assert penalty.add_gradient(at_anchor, 3.0).item() == 0
    assert not any(parameter.grad.any() for parameter in at_anchor.values())
    assert penalty.value(random_tensors(seed + 5), 3.0).item() > 0


@some_examples
@given(seed=st.integers(0, 999))
def test_importances_of_tasks_add_up(seed: int) -> None:
    first, second, third = (random_penalty(seed + k) for k in (0, 10, 20))
    model = random_tensors(seed + 30)
    merged = first.merged(second.importance, second.anchor).merged(third.importance, third.anchor)
    parts = [QuadraticPenalty(task.importance, third.anchor).value(model, 2.0) for task in (first, second, third)]
    torch.testing.assert_close(merged.value(model, 2.0), torch.stack(parts).sum())


def test_a_shared_parameter_is_counted_once() -> None:
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    weights = trainable(tied)
    ones = {name: torch.ones_like(parameter) for name, parameter in weights.items()}
    penalty = QuadraticPenalty(ones, {name: parameter.detach() - 1 for name, parameter in weights.items()})
    assert penalty.value(weights, 1.0).item() == pytest.approx(4)  # 4 weights, each 1 away, not 8
    penalty.add_gradient(weights, 1.0)
    torch.testing.assert_close(tied[1].weight.grad, torch.full((2, 2), 2.0))


def test_new_parameters_and_new_rows_are_free() -> None:
    penalty = QuadraticPenalty({"table": torch.ones(2, 3)}, {"table": torch.zeros(2, 3)})
    grown = parameters({"table": torch.ones(4, 3), "adapter": torch.ones(5)})
    assert penalty.value(grown, 1.0).item() == 6
    penalty.add_gradient(grown, 1.0)
    assert grown["table"].grad.tolist() == [[2.0] * 3] * 2 + [[0.0] * 3] * 2
    assert grown["adapter"].grad is None
    later = penalty.merged({name: torch.ones_like(tensor) for name, tensor in grown.items()}, grown)
    assert later.importance["table"].tolist() == [[2.0] * 3] * 2 + [[1.0] * 3] * 2
    assert later.importance["adapter"].tolist() == [1.0] * 5


@pytest.mark.parametrize("tensor", [None, torch.zeros(1, 3), torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, 3, 1)])
def test_a_model_that_lost_a_parameter_is_refused(tensor: Tensor | None) -> None:
    penalty = QuadraticPenalty({"table": torch.ones(2, 3)}, {"table": torch.zeros(2, 3)})
    other = {} if tensor is None else parameters({"table": tensor})
    for use in (
        lambda: penalty.value(other, 1.0),
        lambda: penalty.add_gradient(other, 1.0),
        lambda: penalty.merged(other, other),
    ):
        with pytest.raises(ModelError, match=r"'table' (is missing|has the shape .* expected \(2, 3\))"):
            use()


def test_a_scalar_that_became_a_row_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'w' has the shape \(3,\); expected \(\)"):
        BY_HAND.value({"w": torch.ones(3), "b": torch.ones(())}, 1.0)


@pytest.mark.parametrize(
    ("importance", "anchor", "message"),
    [
        ({"w": torch.ones(2)}, {}, "'w' has only one of importance and anchor; expected both"),
        ({}, {"w": torch.ones(2)}, "'w' has only one of importance and anchor; expected both"),
        ({"w": torch.ones(2)}, {"w": torch.ones(3)}, r"shape \(2,\) and an anchor of shape \(3,\)"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, {"w": torch.ones(2)}, "expected floating point"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.int64)}, "expected floating point"),
        ({"w": torch.tensor([1.0, -1e-9])}, {"w": torch.ones(2)}, "negative or not finite"),
        ({"w": torch.tensor([1.0, float("nan")])}, {"w": torch.ones(2)}, "negative or not finite"),
        ({"w": torch.tensor([1.0, float("inf")])}, {"w": torch.ones(2)}, "negative or not finite"),
        ({"w": torch.ones(2)}, {"w": torch.tensor([1.0, float("nan")])}, "anchor that is not finite"),
    ],
)
def test_an_inconsistent_penalty_is_refused(
    importance: dict[str, Tensor], anchor: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        QuadraticPenalty(importance, anchor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_and_back(dtype: torch.dtype) -> None:
    penalty = random_penalty(1, dtype)
    data = penalty.to_bytes()
    assert (data.dtype, data.ndim) == (np.uint8, 1)
    copy = QuadraticPenalty.from_bytes(data)
    for before, after in ((penalty.importance, copy.importance), (penalty.anchor, copy.anchor)):
        assert before.keys() == after.keys()
        assert all(before[name].dtype == after[name].dtype for name in before)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_empty_penalty_survives_serialisation() -> None:
    assert not QuadraticPenalty.from_bytes(QuadraticPenalty().to_bytes()).importance


@some_examples
@given(length=st.integers(0, random_penalty(1).to_bytes().size - 1))
def test_cut_bytes_are_refused(length: int) -> None:
    with pytest.raises(ModelError, match=f"penalty of {length} bytes is damaged"):
        QuadraticPenalty.from_bytes(random_penalty(1).to_bytes()[:length])


@some_examples
@given(index=st.integers(0, random_penalty(1).to_bytes().size - 1), value=st.integers(1, 255))
def test_any_changed_byte_raises_a_model_error_or_none(index: int, value: int) -> None:
    data = random_penalty(1).to_bytes().copy()
    data[index] ^= value
    try:
        QuadraticPenalty.from_bytes(data)
    except ModelError as error:
        assert str(error).startswith("penalty")


def test_bytes_of_other_data_are_refused() -> None:
    model = np.frombuffer(safetensors.torch.save({"lm_head.weight": torch.ones(2)}), dtype=np.uint8)
    with pytest.raises(
        ModelError, match=r"a tensor 'lm_head\.weight'; expected only importance\.NAME and anchor\.NAME"
    ):
        QuadraticPenalty.from_bytes(model)


def test_narrow_parameters_drift_in_float32() -> None:
    # In bfloat16, 1 - 2^-10 would be 1.
    penalty = QuadraticPenalty({"w": torch.ones(())}, {"w": torch.tensor(2.0**-10, dtype=torch.bfloat16)})
    model = {"w": nn.Parameter(torch.ones((), dtype=torch.bfloat16))}
    assert penalty.add_gradient(model, 1.0).item() == (1 - 2**-10) ** 2
    assert model["w"].grad.dtype == torch.bfloat16
    assert model["w"].grad.item() == 2
