"""The distance from recorded logits, compared with its definition one entry at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ray_l4.losses.dark_replay import recorded_distance

NAN = float("nan")


def plain(logits_NV: Tensor, ids_NK: Tensor, values_NK: Tensor) -> Tensor:
    """Compute the mean squared difference over the recorded entries, one by one."""
    terms = [
        (logits_NV[n, ids_NK[n, k]].float() - values_NK[n, k]) ** 2
        for n in range(len(ids_NK))
        for k in range(ids_NK.shape[1])
        if not values_NK[n, k].isnan()
    ]
    return torch.stack(terms).mean()


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(5, 11, generator=generator).to(dtype).requires_grad_()
    values_NK, ids_NK = torch.randn(5, 11, generator=generator).topk(4)
    return logits_NV, ids_NK, values_NK


@pytest.mark.parametrize("missing", [0, 2])
def test_it_equals_its_definition_in_value_and_gradient(missing: int) -> None:
    logits_NV, ids_NK, values_NK = example()
    values_NK[:3, 4 - missing :] = NAN
    other = logits_NV.detach().clone().requires_grad_()
    found, expected = recorded_distance(logits_NV, ids_NK, values_NK), plain(other, ids_NK, values_NK)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits_NV.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_narrow_logits_are_compared_in_float32() -> None:
    logits_NV, ids_NK, values_NK = example(torch.bfloat16)
    found = recorded_distance(logits_NV, ids_NK, values_NK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(logits_NV, ids_NK, values_NK), rtol=1e-5, atol=1e-6)


def test_it_is_zero_at_what_was_recorded_and_not_finite_where_the_model_is_not() -> None:
    logits_NV, ids_NK, _ = example()
    assert recorded_distance(logits_NV, ids_NK, logits_NV.detach().gather(1, ids_NK)) == 0
    with torch.no_grad():
        logits_NV[0, ids_NK[0, 0]] = NAN
    assert recorded_distance(logits_NV, ids_NK, torch.zeros(5, 4)).isnan(), "a diverging model does not go unnoticed"
