"""The digest of a model's weights: equal for equal weights, other for any other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ray_l4.learner.digest import digest
from tests.learner.architectures import GPT2, LLAMA, untrained


def test_equal_weights_have_equal_digests() -> None:
    assert digest(untrained(GPT2)) == digest(untrained(GPT2).train())
    assert len({digest(untrained(config, seed)) for config in (GPT2, LLAMA) for seed in (0, 1)}) == 4


@given(st.integers(0, 11), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_one_bit_makes_another_digest(place: int, dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 3, dtype=dtype)
    before = digest(layer)
    with torch.no_grad():
        number = layer.weight.view(-1)[place]
        number.copy_(torch.nextafter(number.float(), torch.tensor(9.0)) if dtype == torch.float32 else number * 2 + 1)
    assert digest(layer) != before


@pytest.mark.parametrize("value", [0.0, float("nan"), float("-inf")])
def test_any_number_counts_and_buffers_too(value: float) -> None:
    layer = nn.BatchNorm1d(2)
    before = digest(layer)
    layer.running_mean.fill_(value if value else 1.0)  # type: ignore[union-attr]
    assert digest(layer) != before
    assert digest(layer) == digest(layer)
    assert digest(nn.BatchNorm1d(2)) == before


def test_names_and_shapes_count() -> None:
    zeros = [nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (3, 2), (6,))]
    modules = [nn.ParameterDict({"a": zero}) for zero in zeros] + [nn.ParameterDict({"b": zeros[0]})]
    assert len({digest(module) for module in modules}) == 4
