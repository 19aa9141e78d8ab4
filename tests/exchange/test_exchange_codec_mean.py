"""The mean codec: the sum over all peers minus one's own gives the mean of the others, within float32 precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_l4.exchange.codecs import Payload
from ray_l4.losses.distillation import distillation, mean_log_probs
from ray_l4.losses.targets import DenseTargets
from tests.exchange.codec_fixtures import TEMPERATURE, codec, predictions_of, softened

num_peers = st.integers(2, 8)


def peers(count: int, seed: int) -> list[Tensor]:
    """Draw each peer's logits (6, 50) for the same positions, from nearly uniform to certain."""
    draw = torch.Generator().manual_seed(seed)
    scales = torch.tensor([0.1, 1.0, 5.0, 30.0]).repeat(2)[:, None, None]
    return list((scales * torch.randn(8, 6, 50, generator=draw) - 40)[:count])


def reduced(logits: list[Tensor], own: int) -> Payload:
    """Return the payload that the collective link gives to peer ``own``: the sum over all, minus its own part."""
    sent = [codec("mean").encode(predictions_of(qa=logits_KV), 0).tensors["qa"] for logits_KV in logits]
    total = torch.stack(sent).sum(0)
    return Payload("mean", {"qa": total.sub_(sent[own]).div_(len(sent) - 1).clamp_(min=0)})


def exact(logits: list[Tensor], own: int) -> Tensor:
    """Return the log of the mean of the others' softened probabilities, in float64."""
    others = [logits_KV.double() for peer, logits_KV in enumerate(logits) if peer != own]
    return mean_log_probs([softened(DenseTargets(logits_KV), logits_KV) for logits_KV in others])


@given(num_peers, st.integers(0, 7), st.integers(0, 2**20))
def test_the_sum_minus_the_own_part_is_the_mean_of_the_others(count: int, own: int, seed: int) -> None:
    own %= count
    logits = peers(count, seed)
    received = softened(codec("mean").decode(reduced(logits, own))["qa"], logits[own])
    torch.testing.assert_close(received.exp().double(), exact(logits, own).exp(), rtol=0, atol=2e-6)
    torch.testing.assert_close(received.exp().sum(-1), torch.ones(6))


@given(num_peers, st.integers(0, 2**20))
def test_the_gradient_equals_that_of_dense_targets_from_each_peer(count: int, seed: int) -> None:
    logits = peers(count, seed)
    gradients = []
    for teacher in (softened(codec("mean").decode(reduced(logits, 0))["qa"], logits[0]), exact(logits, 0)):
        student = logits[0].clone().to(teacher.dtype).requires_grad_()
        distillation(student, teacher, TEMPERATURE, 6.0).backward()
        assert student.grad is not None
        gradients.append(student.grad.double())
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-6)


def test_probabilities_are_sent_at_the_temperature_of_the_divergence() -> None:
    logits = torch.tensor([[4.0, 0.0, -4.0]])
    payload = codec("mean").encode(predictions_of(qa=logits), 0)
    torch.testing.assert_close(payload.tensors["qa"], (logits / TEMPERATURE).softmax(-1))


@pytest.mark.parametrize("count", [2, 8])
def test_a_probability_lost_to_rounding_becomes_zero_and_gives_a_finite_gradient(count: int) -> None:
    """The student is certain of a token to which the others give almost no probability."""
    sure, others = torch.tensor([[90.0, 0.0, 0.0]]), torch.tensor([[-90.0, 0.0, 0.0]])
    received = softened(codec("mean").decode(reduced([sure, *[others] * (count - 1)], 0))["qa"], sure)
    assert received[0, 0].item() == -torch.inf
    student = sure.clone().requires_grad_()
    loss = distillation(student, received, TEMPERATURE, 1.0)
    loss.backward()
    assert loss.isfinite() and student.grad is not None
    torch.testing.assert_close(student.grad, TEMPERATURE * torch.tensor([[1.0, -0.5, -0.5]]), atol=1e-5, rtol=0)
