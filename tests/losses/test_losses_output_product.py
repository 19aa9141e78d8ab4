"""The product with the output matrix, compared with PyTorch's linear layer."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ray_l4.losses import output_product
from ray_l4.losses.output_product import output_logits
from tests.losses.losses_twins import DTYPES, ROUNDING


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_product(logits_NV: Tensor, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> None:
    """Compare with the product in float64: one rounding to the type, and sums of float32 products before."""
    dtype = weight_VD.dtype
    wide = None if bias_V is None else bias_V.double()
    expected_NV = functional.linear(hidden_ND.to(dtype).double(), weight_VD.double(), wide)
    assert (logits_NV.dtype, logits_NV.shape) == (dtype, expected_NV.shape)
    sums_NV = functional.linear(hidden_ND.to(dtype).double().abs(), weight_VD.double().abs())
    allowed_NV = 2 * ROUNDING[dtype] * expected_NV.abs() + weight_VD.shape[1] * ROUNDING[torch.float32] * (sums_NV + 3)
    assert bool(((logits_NV.double() - expected_NV).abs() <= allowed_NV).all())


@given(
    rows=st.integers(0, 40),
    vocab=st.integers(1, 70),
    width=st.integers(1, 33),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    hidden_dtype=st.sampled_from(DTYPES),
)
def test_the_product_equals_the_linear_layer(
    rows: int, vocab: int, width: int, biased: bool, dtype: torch.dtype, hidden_dtype: torch.dtype
) -> None:
    hidden_ND, weight_VD = drawn(rows, width, dtype=hidden_dtype), drawn(vocab, width, dtype=dtype, seed=1)
    bias_V = drawn(vocab, dtype=dtype, seed=2) if biased else None
    assert_product(output_logits(hidden_ND, weight_VD, bias_V), hidden_ND, weight_VD, bias_V)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
def test_tensors_need_not_be_contiguous(dtype: torch.dtype, biased: bool) -> None:
    hidden_ND = drawn(16, 14, dtype=dtype).T[::2]  # (7, 16)
    weight_VD = drawn(16, 60, dtype=dtype, seed=1).T[::3]  # (20, 16)
    bias_V = drawn(60, dtype=dtype, seed=2)[::3] if biased else None
    assert not hidden_ND.is_contiguous() and not weight_VD.is_contiguous()
    assert_product(output_logits(hidden_ND, weight_VD, bias_V), hidden_ND, weight_VD, bias_V)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_rows_there_are_no_logits(dtype: torch.dtype) -> None:
    logits_NV = output_logits(drawn(0, 8), drawn(5, 8, dtype=dtype), None)
    assert (logits_NV.shape, logits_NV.dtype) == ((0, 5), dtype)


def test_the_product_has_no_graph_and_shares_no_memory() -> None:
    hidden_ND, weight_VD = drawn(3, 8).requires_grad_(), drawn(5, 8, seed=1).requires_grad_()
    before = hidden_ND.detach().clone(), weight_VD.detach().clone()
    logits_NV = output_logits(hidden_ND, weight_VD, None)
    assert not logits_NV.requires_grad
    logits_NV.fill_(7.0)
    assert torch.equal(hidden_ND.detach(), before[0]) and torch.equal(weight_VD.detach(), before[1])


@pytest.mark.parametrize("biased", [True, False])
def test_a_processor_without_onednn_computes_the_same(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND, weight_VD, bias_V = drawn(9, 16), drawn(20, 16, seed=1), drawn(20, seed=2) if biased else None
    with_it = output_logits(hidden_ND, weight_VD, bias_V)
    monkeypatch.setattr(output_product, "_has_onednn", lambda: False)
    without = output_logits(hidden_ND, weight_VD, bias_V)
    assert torch.equal(without, functional.linear(hidden_ND, weight_VD, bias_V))
    assert_product(with_it, hidden_ND, weight_VD, bias_V)


MANY_SHAPES = """
import torch
from ray_l4.losses.output_product import output_logits
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) // 1024
weight = torch.randn(773, 80)
for rows in range(600, 580, -1):
    output_logits(torch.randn(rows, 80), weight, None)
before = resident()
for rows in range(1, 580):
    output_logits(torch.randn(rows, 80), weight, None)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_of_many_shapes_leave_no_memory_behind() -> None:
    """Every step of a packed run has other numbers of rows; each left half a megabyte."""
    words = [sys.executable, "-c", MANY_SHAPES]
    assert int(subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout) < 30
