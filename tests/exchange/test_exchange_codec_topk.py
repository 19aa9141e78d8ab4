"""The top-k codec: the payload, and the gradient that a student gets from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.exchange.codecs import rows as codec_rows
from ray_l4.exchange.codecs.topk import TopK
from tests.exchange.codec_fixtures import TEMPERATURE, codec, logits, predictions_of, round_trip, softened
from tests.learner import learner_fixtures as small


@given(logits, st.integers(1, 45))
def test_the_largest_log_probabilities_and_the_remaining_mass_are_sent(logits_KV: np.ndarray, k: int) -> None:
    num_rows, vocab = logits_KV.shape
    payload = TopK(k, TEMPERATURE).encode(predictions_of(lm=torch.from_numpy(logits_KV)), 0)
    ids, log_probs, rest = (payload.tensors[f"lm/{name}"] for name in ("ids", "log_probs", "rest"))
    assert ids.shape == log_probs.shape == (num_rows, min(k, vocab)) and rest.shape == (num_rows,)
    assert (ids.dtype, log_probs.dtype, rest.dtype) == (torch.int32, torch.float32, torch.float32)
    for row in range(num_rows):
        exact = torch.from_numpy(logits_KV[row].astype(np.float64) / TEMPERATURE).log_softmax(-1)
        chosen = ids[row].tolist()
        others = [v for v in range(vocab) if v not in chosen]
        assert len(set(chosen)) == len(chosen)
        torch.testing.assert_close(log_probs[row].double(), exact[chosen], rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(
            log_probs[row].double(), exact.sort(descending=True).values[: len(chosen)], atol=1e-4, rtol=1e-6
        )
        if others:
            assert rest[row].item() == pytest.approx(exact[others].logsumexp(-1).item(), rel=1e-6, abs=1e-4)
        else:
            assert rest[row].item() == -math.inf


def test_a_remaining_mass_below_float32_resolution_is_kept() -> None:
    """In float32, 1 minus the largest probability is 0 here; the sum of the others has seven digits."""
    sure = torch.tensor([[60.0, 0.0, 0.0, 0.0]])
    assert (1 - (sure / TEMPERATURE).softmax(-1)[0, 0]).item() == 0.0
    payload = TopK(1, TEMPERATURE).encode(predictions_of(qa=sure), 0)
    assert payload.tensors["qa/rest"].item() == pytest.approx(math.log(3) - 30, rel=1e-6)


def test_the_remaining_mass_is_distributed_like_the_students() -> None:
    teacher, student = torch.tensor([[4.0, 2.0, 0.0, -2.0]]), torch.tensor([[0.0, 0.0, 2.0, 4.0]])
    received = softened(round_trip(codec("topk 1"), predictions_of(qa=teacher))["qa"], student).exp()
    own, tail = (teacher / TEMPERATURE).softmax(-1), (student / TEMPERATURE).softmax(-1)[:, 1:]
    torch.testing.assert_close(received[:, 0], own[:, 0])
    torch.testing.assert_close(received[:, 1:], tail / tail.sum() * (1 - own[:, :1]))


def test_encoding_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = predictions_of(qa=torch.randn(11, 9, generator=torch.Generator().manual_seed(0)))
    whole = codec("topk 3").encode(predictions, 0)
    monkeypatch.setattr(codec_rows, "CHUNK_ELEMENTS", 2 * 9)
    parts = codec("topk 3").encode(predictions, 0)
    assert all(torch.equal(parts.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_the_gradient_error_falls_as_k_grows() -> None:
    """The error of a learner's whole gradient falls as k grows, and vanishes when k is the vocabulary's size."""
    tok = small.tokenizer()
    gradients = {}
    for k in (1, 16, 128, tok.size):
        learners = small.unlike(small.peers(small.experiment(peers={"init": "own"}), tok))
        teacher, student = small.begun(learners, small.tokens(tok))
        taken = small.record_gradients(student)
        student.forward(0)
        student.backward(0, [round_trip(TopK(k, TEMPERATURE), teacher.forward(0))])
        gradients[k] = torch.cat([gradient.flatten() for gradient in taken[0].values()])
    exact = gradients.pop(tok.size)
    errors = [float((gradient - exact).norm() / exact.norm()) for gradient in gradients.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[-1]
