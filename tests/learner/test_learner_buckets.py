"""Processing tensors in buckets changes no number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ray_l4.learner import optim
from ray_l4.learner.buckets import buckets


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 200))
def test_buckets_hold_every_tensor_once_and_in_order(sizes: list[int], limit: int) -> None:
    tensors = [torch.zeros(size) for size in sizes]
    made = list(buckets(tensors, limit))
    assert [id(tensor) for bucket in made for tensor in bucket] == [id(tensor) for tensor in tensors]
    assert all(len(bucket) == 1 or sum(own.nbytes for own in bucket) <= limit for bucket in made)
    assert all(made), "none is empty"


def trained(dtype: torch.dtype) -> list[torch.Tensor]:
    """Return weights of several shapes after three updates."""
    generator = torch.Generator().manual_seed(3)
    weights = [nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in ((5, 3), (7,), (2, 9))]
    optimizer = optim.ReferenceAdamW(weights, lr=1e-2)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(dtype)
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updating_in_buckets_changes_no_number(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(tensors: list[torch.Tensor], size: int) -> list[list[torch.Tensor]]:
        made = list(buckets(tensors, size))
        sizes.append([len(bucket) for bucket in made])
        return made

    monkeypatch.setattr(optim, "buckets", counted)
    whole = trained(dtype)
    monkeypatch.setattr(optim, "_BUCKET_BYTES", 1)
    parts = trained(dtype)
    assert sizes == [[3]] * 3 + [[1, 1, 1]] * 3
    for expected, found in zip(whole, parts, strict=True):
        assert torch.equal(expected, found)
