"""Importance of parameters, compared with values computed by hand and with plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_twins import softmax, some_examples
from torch import Tensor, nn
from torch.nn import functional

from ray_l4.losses.importance import fisher_diagonal, output_sensitivity, squared_output_norm, trainable

# Logistic regression p(y = 1 | x) = sigmoid(w x + b) with w = ln 3, b = 0: p = 3/4, 1/4, 9/10 at x = 1, -1, 2.
EXAMPLES = ((1.0, 1), (-1.0, 1), (2.0, 0))


def logistic(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.tensor(v, dtype=dtype)) for name, v in (("w", math.log(3)), ("b", 0.0))}


def logits_of(model: dict[str, nn.Parameter], x: float) -> Tensor:
    """Return logits (1, 2) of class 1 and class 0."""
    score = model["w"] * x + model["b"]
    return torch.stack([score, torch.zeros_like(score)]).unsqueeze(0)


def log_likelihoods(model: dict[str, nn.Parameter]) -> Iterator[Tensor]:
    for x, y in EXAMPLES:
        yield logits_of(model, x).log_softmax(dim=-1)[0, 1 - y]


def output_norms(model: dict[str, nn.Parameter]) -> Iterator[Tensor]:
    for x, _ in EXAMPLES:
        yield squared_output_norm(logits_of(model, x))


def numbers(tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name: tensor.item() for name, tensor in tensors.items()}


def test_fisher_by_hand() -> None:
    # Gradient of log p is (y - p) (x, 1): (1/4, 1/4), (-3/4, 3/4), (-9/5, -9/10). Squared and averaged:
    expected = {"w": (0.0625 + 0.5625 + 3.24) / 3, "b": (0.0625 + 0.5625 + 0.81) / 3}
    model = logistic()
    assert numbers(fisher_diagonal(model, log_likelihoods(model))) == pytest.approx(expected, rel=1e-12)


def test_the_sign_of_the_loss_does_not_matter() -> None:
    model = logistic()
    losses = (-value for value in log_likelihoods(model))
    assert fisher_diagonal(model, losses) == fisher_diagonal(model, log_likelihoods(model))


def test_fisher_squares_each_example_not_the_batch() -> None:
    # In one batch the gradients of w sum to -2.3, those of b to 0.1: squaring their mean would nearly lose b.
    model = logistic()
    batch = fisher_diagonal(model, [torch.stack(list(log_likelihoods(model))).mean()])
    assert numbers(batch) == pytest.approx({"w": (2.3 / 3) ** 2, "b": (0.1 / 3) ** 2}, rel=1e-12)


def test_sensitivity_by_hand() -> None:
    # d (p^2 + (1 - p)^2) / dz = 2 (2p - 1) p (1 - p) = 3/16, -3/16, 0.144, times (x, 1). With signs b would be 0.048.
    expected = {"w": (0.1875 + 0.1875 + 0.288) / 3, "b": (0.1875 + 0.1875 + 0.144) / 3}
    model = logistic()
    assert numbers(output_sensitivity(model, output_norms(model))) == pytest.approx(expected, rel=1e-12)


def test_output_norm_by_hand() -> None:
    # Probabilities (3/4, 1/4) and (1/2, 1/2): squares add up to 5/8 and 1/2.
    logits = torch.tensor([[math.log(3), 0.0], [7.0, 7.0]])
    assert squared_output_norm(logits).item() == pytest.approx((0.625 + 0.5) / 2)


@some_examples
@given(rows=st.integers(1, 4), vocab=st.integers(1, 6), shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_output_norm_is_that_of_the_probabilities(rows: int, vocab: int, shift: float, seed: int) -> None:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = sum(sum(p * p for p in softmax(row)) for row in logits.tolist()) / rows
    assert squared_output_norm(logits + shift).item() == pytest.approx(expected)
    assert 1 / vocab - 1e-9 <= expected <= 1 + 1e-9


class Tied(nn.Module):
    """An embedding, a frozen layer, an unused layer, and an output matrix tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids_T: Tensor) -> Tensor:
        return self.head(self.frozen(self.embedding(ids_T)))


def test_only_trainable_parameters_and_shared_ones_once() -> None:
    assert list(trainable(Tied())) == ["embedding.weight", "unused.weight", "unused.bias"]


@some_examples
@given(lengths=st.lists(st.integers(2, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_equals_one_plain_backward_per_example(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = Tied()
    texts = [torch.randint(0, 4, (length,)) for length in lengths]

    def losses() -> Iterator[Tensor]:
        return (functional.cross_entropy(model(text[:-1]), text[1:], reduction="sum") for text in texts)

    squares, sizes = torch.zeros(4, 3), torch.zeros(4, 3)
    for loss in losses():
        model.zero_grad()
        loss.backward()
        squares += model.embedding.weight.grad**2 / len(texts)
        sizes += model.embedding.weight.grad.abs() / len(texts)
    for measure, expected in ((fisher_diagonal, squares), (output_sensitivity, sizes)):
        importance = measure(trainable(model), losses())
        torch.testing.assert_close(importance["embedding.weight"], expected)
        assert not importance["unused.weight"].any()
        assert not any(values.requires_grad for values in importance.values())


def test_one_graph_at_a_time_and_gradients_left_alone() -> None:
    model = logistic()
    model["w"].grad = torch.tensor(5.0, dtype=torch.float64)
    scalars: list[Tensor] = []

    def remembered() -> Iterator[Tensor]:
        for scalar in log_likelihoods(model):
            for earlier in scalars:
                with pytest.raises(RuntimeError, match="second time"):  # freed before the next one is built
                    torch.autograd.grad(earlier, model["w"])
            scalars.append(scalar)
            yield scalar

    fisher_diagonal(model, remembered())
    assert len(scalars) == 3
    assert model["w"].grad.item() == 5.0
    assert model["b"].grad is None


def test_narrow_parameters_are_summed_in_float32() -> None:
    # 300 ones: a sum in bfloat16 would stop at 256.
    weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
    importance = fisher_diagonal({"w": weight}, (weight * 1.0 for _ in range(300)))["w"]
    assert (importance.dtype, importance.item()) == (torch.float32, 1.0)


@pytest.mark.parametrize("measure", [fisher_diagonal, output_sensitivity])
def test_no_example_is_an_error(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="at least one example, got none"):
        measure(logistic(), [])
