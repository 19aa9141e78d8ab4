"""A-GEM's projection: values by hand, and the closest vector on the allowed side of a plane."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from losses_twins import some_examples
from torch import Tensor, nn

from ray_l4.errors import ModelError
from ray_l4.losses.projection import project_, project_gradients, take_gradients

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
dtypes = st.sampled_from(list(TOLERANCE))

# Zero, or large enough that products do not underflow in float32.
entries = st.just(0.0) | st.builds(
    lambda s, e, m: s * m * 2.0**e, st.sampled_from([-1, 1]), st.integers(-8, 8), st.floats(1, 2)
)


@st.composite
def pairs(draw: st.DrawFn, dtype: torch.dtype | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Draw a gradient and a reference over one to four parameters of various shapes, including scalars."""
    dtype = dtype or draw(dtypes)
    shapes = draw(st.lists(st.sampled_from([(), (1,), (3,), (2, 2)]), min_size=1, max_size=4))
    count = [torch.Size(shape).numel() for shape in shapes]
    flat = [draw(st.lists(entries, min_size=sum(count), max_size=sum(count))) for _ in range(2)]
    g, r = ([part.view(s) for part, s in zip(torch.tensor(f).split(count), shapes, strict=True)] for f in flat)
    return [part.to(dtype) for part in g], [part.to(dtype) for part in r]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def projected(g: list[Tensor], r: list[Tensor]) -> list[Tensor]:
    copies = [tensor.clone() for tensor in g]
    project_(copies, r)
    return copies


def size(*tensors: list[Tensor]) -> float:
    """Return the product of norms, the scale of the rounding error of an inner product."""
    return float(torch.stack([flat(t).norm() for t in tensors]).prod())


def test_by_hand() -> None:
    # g . r = -4 - 2 = -6, r . r = 8: g + 6/8 r = (-1/2, 1/2).
    g, r = [torch.tensor([-2.0]), torch.tensor([[-1.0]])], [torch.tensor([2.0]), torch.tensor([[2.0]])]
    inner = project_(g, r)
    assert inner.item() == -6
    assert [tensor.tolist() for tensor in g] == [[-0.5], [[0.5]]]


def test_the_inner_product_runs_over_all_parameters_together() -> None:
    # The first parameter alone conflicts (-1); together with the second (+2) there is no conflict, so both stay.
    g, r = [torch.tensor(-1.0), torch.tensor(2.0)], [torch.tensor(1.0), torch.tensor(1.0)]
    assert project_(g, r).item() == 1
    assert [tensor.item() for tensor in g] == [-1, 2]


@some_examples
@given(pairs())
def test_the_reference_loss_does_not_rise(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    g, r = pair
    after = flat(projected(g, r)) @ flat(r)
    assert after >= -TOLERANCE[g[0].dtype] * size(g, r)


@some_examples
@given(pairs())
def test_unchanged_bit_for_bit_without_conflict(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    g, r = pair
    inner = flat(g) @ flat(r)
    assume(abs(inner) > 1e-6 * size(g, r))  # otherwise rounding may decide its sign
    if inner < 0:
        g = [-tensor for tensor in g]
    for reference in (r, [torch.zeros_like(tensor) for tensor in r]):
        assert all(torch.equal(a, b) for a, b in zip(projected(g, reference), g, strict=True))


def test_orthogonal_gradients_do_not_conflict() -> None:
    g, r = [torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 5.0])]
    assert project_(g, r).item() == 0
    assert g[0].tolist() == [3, 0]


@some_examples
@given(pairs(), st.sampled_from([2.0**-6, 0.5, 4.0, 2.0**6]))
def test_projecting_twice_or_onto_a_longer_reference_is_the_same(
    pair: tuple[list[Tensor], list[Tensor]], factor: float
) -> None:
    g, r = pair
    once = projected(g, r)
    tolerance = TOLERANCE[g[0].dtype] * size(g)
    for other in (projected(once, r), projected(g, [factor * tensor for tensor in r])):
        assert (flat(other) - flat(once)).norm() <= tolerance


@some_examples
@given(pairs(), st.integers(0, 999))
def test_the_result_is_the_closest_allowed_vector(pair: tuple[list[Tensor], list[Tensor]], seed: int) -> None:
    g, r = pair
    g_flat, r_flat, result = flat(g), flat(r), flat(projected(g, r))
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-4, 2, 13, dtype=torch.float64)
    for scale in scales:
        noise = scale * torch.randn(g_flat.shape, generator=generator, dtype=torch.float64)
        for candidate in (noise, g_flat + noise, result + noise):
            # Mirrored to the allowed side of the plane if necessary.
            inner = candidate @ r_flat
            allowed = candidate - 2 * inner / (r_flat @ r_flat) * r_flat if inner < 0 else candidate
            tolerance = TOLERANCE[g[0].dtype] * (g_flat.norm() + allowed.norm())
            assert (g_flat - result).norm() <= (g_flat - allowed).norm() + tolerance
            # For a convex problem equivalent, and stricter: no allowed direction leads from the result towards g.
            assert (g_flat - result) @ (allowed - result) <= tolerance * (g_flat.norm() + allowed.norm())


@some_examples
@given(pairs(torch.float64))
def test_never_longer_and_orthogonal_where_changed(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    g, r = pair
    result = projected(g, r)
    assert size(result) <= size(g) * (1 + 1e-12)
    if flat(g) @ flat(r) < 0:
        assert abs(flat(result) @ flat(r)) <= 1e-12 * size(g, r)


@some_examples
@given(pairs())
def test_returns_the_inner_product_and_keeps_the_reference(pair: tuple[list[Tensor], list[Tensor]]) -> None:
    g, r = pair
    expected, scale, before = flat(g) @ flat(r), size(g, r), [tensor.clone() for tensor in r]
    inner = project_(g, r)
    assert (inner.dtype, inner.shape) == (torch.float64, ())
    assert abs(inner - expected) <= 1e-6 * scale
    assert all(torch.equal(a, b) for a, b in zip(r, before, strict=True))


def test_a_reference_without_a_direction_changes_nothing() -> None:
    for tiny in (0.0, 1e-30):  # the square of the second is 0 in float32, its product with g is not
        g = [torch.tensor([-1.0])]
        project_(g, [torch.tensor([tiny])])
        assert g[0].item() == -1


def test_a_reference_that_is_not_finite_gives_a_gradient_that_is_not_finite() -> None:
    g = [torch.tensor([1.0, 2.0])]
    project_(g, [torch.tensor([float("nan"), 0.0])])
    assert not g[0].isfinite().all()  # the learner refuses a step whose gradient norm is not finite


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"a gradient has shape \(2,\), its reference \(3,\)"):
        project_([torch.zeros(2)], [torch.zeros(3)])
    with pytest.raises(ValueError, match="shorter"):
        project_([torch.zeros(2), torch.zeros(2)], [torch.zeros(2)])


def model(**gradients: list[float] | None) -> dict[str, nn.Parameter]:
    """Build parameters with these gradients."""
    named = {name: nn.Parameter(torch.zeros(len(values or [0.0]))) for name, values in gradients.items()}
    for name, values in gradients.items():
        named[name].grad = None if values is None else torch.tensor(values)
    return named


def test_a_step_of_the_learner() -> None:
    # Loss on the memory 3 w, on the batch -2 w + v: the batch increases w, the memory decreases it.
    weights = model(w=None, v=None)
    (3 * weights["w"]).sum().backward()
    reference = take_gradients(weights)
    assert {name: tensor.tolist() for name, tensor in reference.items()} == {"w": [3.0]}
    assert weights["w"].grad is None
    (-2 * weights["w"] + weights["v"]).sum().backward()
    assert project_gradients(weights, reference).item() == -6
    assert (weights["w"].grad.item(), weights["v"].grad.item()) == (0.0, 1.0)


def test_taking_does_not_copy() -> None:
    weights = model(w=[1.0])
    before = weights["w"].grad
    assert take_gradients(weights)["w"] is before


def test_a_missing_gradient_counts_as_zero() -> None:
    # g = (-1, 0), r = (1, 1): g - (-1 / 2) r = (-1/2, 1/2), also for the parameter that the batch does not use.
    weights = model(w=[-1.0], v=None)
    project_gradients(weights, {"v": torch.ones(1), "w": torch.ones(1)})
    assert (weights["w"].grad.item(), weights["v"].grad.item()) == (-0.5, 0.5)


def test_a_reference_for_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="a reference gradient for 'u', which the model does not have"):
        project_gradients(model(w=[1.0]), {"u": torch.ones(1)})
