"""What is sent between peers comes back as what it was, or as near as its width allows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.exchange.codecs import CODECS, Codec, num_bytes
from tests.learner import learner_fixtures as small

CPU = torch.device("cpu")
FLOAT32, FLOAT16 = CODECS["dense", "float32"], CODECS["dense", "float16"]

# Positions x vocabulary, any of GPT-2's logits (-30 to -100 and around) and more.
logits = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 40)),
    elements=st.floats(-200, 200, width=32),
)


def log_probs(logits_KV: np.ndarray) -> Tensor:
    return torch.log_softmax(torch.from_numpy(logits_KV), dim=-1)


def sent(codec: Codec, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
    """There and back, through write-protected memory as the object store hands it out."""
    payload = codec.encode(predictions)
    for array in payload.values():
        array.setflags(write=False)
    return codec.decode(payload, CPU)


def test_every_choice_of_the_profile_has_a_codec() -> None:
    fields = ExchangeConfig.model_fields
    kinds, widths = (fields[name].annotation.__args__ for name in ("codec", "precision"))
    assert set(CODECS) == {(kind, width) for kind in kinds for width in widths}


@given(logits)
def test_float32_is_exact(logits_KV: np.ndarray) -> None:
    expected = log_probs(logits_KV)
    received = sent(FLOAT32, {"qa": expected.clone()})["qa"]
    assert received.dtype == torch.float32
    assert torch.equal(received, expected)


@given(logits)
def test_float16_gives_probabilities_that_sum_to_one(logits_KV: np.ndarray) -> None:
    received = sent(FLOAT16, {"qa": log_probs(logits_KV)})["qa"]
    assert received.dtype == torch.float32
    assert received.shape == logits_KV.shape
    torch.testing.assert_close(received.exp().sum(-1), torch.ones(len(logits_KV)))


@given(logits)
def test_float16_is_fine_where_probability_is(logits_KV: np.ndarray) -> None:
    """float16 keeps 11 bits: an entry d below the maximum is off by d / 2048 at most, and so is its row's sum."""
    expected = log_probs(logits_KV)
    received = sent(FLOAT16, {"qa": expected})["qa"]
    if not expected.numel():
        return
    below = expected.amax(-1, keepdim=True) - expected
    assert ((received - expected).abs() <= (below + below.amax(-1, keepdim=True)) / 2048 + 1e-4).all()
    # What matters for learning: probabilities differ by less than p * d / 2048 <= 0.2 %, as x e^-x stays small.
    assert ((received.exp() - expected.exp()).abs() < 2e-3).all()


def test_float16_resolves_log_probabilities_near_minus_100() -> None:
    """Uncentred, neighbours at -100 would be 1/16 apart: here the two best are 0.01 apart and stay so."""
    rest = torch.full((1, 50), -160.0)
    rows = torch.cat([torch.tensor([[-100.0, -100.01]]), rest], dim=1)
    received = sent(FLOAT16, {"lm": rows})["lm"]
    assert float(received[0, 0] - received[0, 1]) == pytest.approx(0.01, abs=1e-4)
    assert float(rows.half()[0, 0] - rows.half()[0, 1]) == 0.0, "why centring is needed"


def test_float16_survives_what_is_beyond_its_range() -> None:
    received = sent(FLOAT16, {"qa": torch.tensor([[0.0, -1e6], [-1e6, 0.0]])})["qa"]
    assert torch.equal(received.exp(), torch.eye(2))


@pytest.mark.parametrize("codec", [FLOAT32, FLOAT16])
def test_no_positions_and_no_heads_pass(codec: Codec) -> None:
    received = sent(codec, {"qa": torch.empty(0, 7), "lm": torch.log_softmax(torch.ones(2, 7), -1)})
    assert received["qa"].shape == (0, 7)
    assert received["lm"].shape == (2, 7)
    assert sent(codec, {}) == {}


@pytest.mark.parametrize("codec", [FLOAT32, FLOAT16])
def test_protected_arrays_are_read_without_a_warning(codec: Codec) -> None:
    torch.set_warn_always(True)  # otherwise the first test of the process would have used up the one warning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sent(codec, {"qa": torch.log_softmax(torch.ones(2, 5), -1)})
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("codec", [FLOAT32, FLOAT16])
def test_encoding_leaves_the_predictions_alone(codec: Codec) -> None:
    predictions = torch.log_softmax(torch.arange(10.0).reshape(2, 5), -1)
    before = predictions.clone()
    codec.encode({"qa": predictions})
    assert torch.equal(predictions, before)


@pytest.mark.parametrize("codec", [FLOAT32, FLOAT16])
def test_a_learner_never_writes_to_what_it_was_sent(codec: Codec) -> None:
    """PyTorch writes through write protection in silence, and the memory is shared by all readers."""
    tok = small.tokenizer()
    teacher, student = small.peers(small.experiment(), tok)
    table = small.tokens(tok)
    for learner in (teacher, student):
        learner.begin_stage(1, table)
    payload = codec.encode(teacher.forward(0))
    before = {head: array.copy() for head, array in payload.items()}
    for array in payload.values():
        array.setflags(write=False)
    student.forward(0)
    student.backward(0, [codec.decode(payload, CPU)])
    assert all(np.array_equal(payload[head], before[head]) for head in before)


def test_bytes_are_those_of_the_entries() -> None:
    predictions = {"qa": torch.zeros(3, 11), "lm": torch.zeros(5, 11)}
    assert num_bytes(FLOAT32.encode(predictions)) == (3 + 5) * 11 * 4
    assert num_bytes(FLOAT16.encode(predictions)) == (3 + 5) * 11 * 2
    assert num_bytes({}) == 0
