"""The chunked form of any row-wise objective: its calls, its results, and how much memory it keeps alive."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_twins import random_logits, some_examples
from torch import Tensor

from ray_l4.losses.chunked import CHUNK_ELEMENTS, chunked_gradient, rehearsed_chunks


def row_objective(logits_MV: Tensor, rows: slice) -> tuple[Tensor, ...]:
    """A smooth function that is a sum over rows and depends on their indices."""
    scale_M = torch.arange(rows.start, rows.stop, dtype=logits_MV.dtype) + 1
    per_row_M = scale_M * logits_MV.logsumexp(dim=-1) ** 2
    return per_row_M.sum(), per_row_M.detach().sqrt().sum()


@some_examples
@given(rows=st.integers(0, 12), vocab=st.integers(1, 9), elements=st.integers(1, 60), seed=st.integers(0, 99))
def test_any_chunking_gives_the_whole_result(rows: int, vocab: int, elements: int, seed: int) -> None:
    logits = random_logits(rows, vocab, seed).double().requires_grad_()
    whole = row_objective(logits, slice(0, rows))
    (expected,) = torch.autograd.grad(whole[0], logits)
    scalars, gradient = chunked_gradient(row_objective, logits, elements)
    torch.testing.assert_close(torch.stack(scalars), torch.stack(whole).detach())
    torch.testing.assert_close(gradient, expected)
    assert not any(scalar.requires_grad for scalar in scalars)


@some_examples
@given(rows=st.integers(0, 40), vocab=st.integers(1, 9), elements=st.integers(1, 60))
def test_chunks_cover_every_row_once_within_the_budget(rows: int, vocab: int, elements: int) -> None:
    seen: list[slice] = []

    def recording(logits_MV: Tensor, chunk: slice) -> tuple[Tensor, ...]:
        seen.append(chunk)
        assert logits_MV.shape == (chunk.stop - chunk.start, vocab)
        assert logits_MV.numel() <= max(elements, vocab)
        return row_objective(logits_MV, chunk)

    chunked_gradient(recording, torch.zeros(rows, vocab), elements)
    assert [row for chunk in seen for row in range(chunk.start, chunk.stop)] == list(range(rows))
    assert seen  # called even without rows, so that its scalars are known


def test_the_gradient_goes_on_into_the_model() -> None:
    hidden, matrix = random_logits(7, 3, 0).requires_grad_(), random_logits(5, 3, 1).requires_grad_()
    row_objective(hidden @ matrix.T, slice(0, 7))[0].backward()
    expected = hidden.grad.clone(), matrix.grad.clone()
    hidden.grad = matrix.grad = None
    logits = hidden @ matrix.T
    _, gradient = chunked_gradient(row_objective, logits, chunk_elements=10)
    logits.backward(gradient)
    torch.testing.assert_close((hidden.grad, matrix.grad), expected)


def test_works_where_gradients_are_switched_off() -> None:
    logits = random_logits(4, 3, 0)
    _, expected = chunked_gradient(row_objective, logits, 6)
    with torch.no_grad():
        _, gradient = chunked_gradient(row_objective, logits, 6)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradient_has_type_and_shape_of_the_logits(dtype: torch.dtype) -> None:
    _, gradient = chunked_gradient(row_objective, random_logits(5, 4, 0, dtype), 8)
    assert (gradient.dtype, gradient.shape) == (dtype, (5, 4))


def test_only_one_chunk_is_kept_for_the_backward_pass() -> None:
    """The number of elements that autograd saves is bounded by the budget for any number of rows."""

    def most_saved(rows: int, elements: int) -> int:
        held = most = 0

        def pack(tensor: Tensor) -> Held:
            return Held(tensor)

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal held, most
                self.tensor = tensor
                held += tensor.numel()
                most = max(most, held)

            def __del__(self) -> None:
                nonlocal held
                held -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            chunked_gradient(row_objective, random_logits(rows, 32, 0), elements)
        return most

    assert most_saved(64, elements=128) == most_saved(8, elements=128)
    assert most_saved(64, elements=CHUNK_ELEMENTS) > 4 * most_saved(64, elements=128)


def test_a_rehearsal_takes_the_first_two_chunks_and_the_last() -> None:
    seen: list[slice] = []

    def objective(logits_MV: torch.Tensor, rows: slice) -> tuple[torch.Tensor, ...]:
        seen.append(rows)
        return (logits_MV.sum(),)

    with rehearsed_chunks():
        chunked_gradient(objective, torch.zeros(11, 3), chunk_elements=6)
    assert seen == [slice(0, 2), slice(2, 4), slice(10, 11)]
    seen.clear()
    chunked_gradient(objective, torch.zeros(11, 3), chunk_elements=6)
    assert len(seen) == 6, "only within the context"
