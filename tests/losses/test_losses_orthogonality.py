"""The overlap of subspaces and its gradient, compared with autograd."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.losses.orthogonality import overlap


@given(earlier=st.integers(0, 5), rank=st.integers(1, 4), width=st.integers(1, 6), seed=st.integers(0, 9))
def test_it_equals_autograd(earlier: int, rank: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    earlier_PD, current_RD = (torch.randn(rows, width, generator=generator) for rows in (earlier, rank))
    current_RD.requires_grad_()
    expected = sum((torch.abs(row @ current_RD.T).sum() for row in earlier_PD), start=0 * current_RD.sum())
    expected.backward()
    value, gradient_RD = overlap(earlier_PD, current_RD)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient_RD, current_RD.grad, rtol=1e-5, atol=1e-5)


def test_orthogonal_subspaces_do_not_overlap() -> None:
    axes = torch.eye(5)
    value, gradient_RD = overlap(axes[:2], axes[2:4])
    assert value == 0 and not gradient_RD.any()
    assert overlap(axes[:2], axes[1:3])[0] == 1, "one axis in common"
