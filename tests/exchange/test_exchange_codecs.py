"""Properties of all codecs: decoded targets equal the encoded predictions, within the codec's precision."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.errors import ConfigError
from ray_l4.exchange.codecs import Payload, build_codec
from ray_l4.exchange.codecs.table import BUILDERS
from ray_l4.learner.predictions import Predictions
from tests.exchange.codec_fixtures import (
    SETTINGS,
    TEMPERATURE,
    codec,
    logits,
    predictions_of,
    round_trip,
    softened,
    write_protected,
)
from tests.learner import learner_fixtures as small

every_codec = pytest.mark.parametrize("name", SETTINGS)
some_examples = settings(max_examples=30)


def test_every_value_of_exchange_codec_has_a_codec() -> None:
    choices = ExchangeConfig.model_fields["codec"].annotation.__args__
    assert set(BUILDERS) == set(choices) == {name.split()[0] for name in SETTINGS}


@every_codec
@some_examples
@given(logits, st.integers(0, 2**63 - 1))
def test_targets_are_a_probability_distribution(name: str, logits_KV: np.ndarray, seed: int) -> None:
    teacher_KV = torch.from_numpy(logits_KV)
    targets = round_trip(codec(name), predictions_of(qa=teacher_KV), seed)["qa"]
    assert targets.num_positions == len(teacher_KV)
    log_probs_KV = softened(targets, teacher_KV.flip(-1))  # a student with different predictions
    assert log_probs_KV.shape == teacher_KV.shape
    assert log_probs_KV.dtype == torch.float32
    assert (log_probs_KV <= 1e-6).all()
    torch.testing.assert_close(log_probs_KV.exp().sum(-1), torch.ones(len(teacher_KV)), rtol=0, atol=1e-5)


@every_codec
def test_a_certain_prediction_stays_certain(name: str) -> None:
    teacher_KV = torch.full((2, 30), -200.0)
    teacher_KV[0, 4] = teacher_KV[1, 29] = 200.0
    received_KV = softened(round_trip(codec(name), predictions_of(qa=teacher_KV))["qa"], torch.zeros(2, 30)).exp()
    assert torch.equal(received_KV.argmax(-1), torch.tensor([4, 29]))
    torch.testing.assert_close(received_KV.amax(-1), torch.ones(2))


@pytest.mark.parametrize("name", ["dense", "factored", "auto", "topk 100"])
@some_examples
@given(logits)
def test_lossless_codecs_reproduce_the_softened_predictions(name: str, logits_KV: np.ndarray) -> None:
    """Top-k is lossless if the vocabulary is no larger than k."""
    teacher_KV = torch.from_numpy(logits_KV)
    received_KV = softened(round_trip(codec(name), predictions_of(qa=teacher_KV))["qa"], torch.zeros_like(teacher_KV))
    # log_softmax subtracts numbers of up to 200 from each other, here once or twice, which costs precision.
    torch.testing.assert_close(received_KV, (teacher_KV / TEMPERATURE).log_softmax(-1), rtol=1e-6, atol=1e-4)


@every_codec
@some_examples
@given(logits, st.data())
def test_targets_of_some_rows_equal_those_rows_of_all_targets(
    name: str, logits_KV: np.ndarray, data: st.DataObject
) -> None:
    teacher_KV = torch.from_numpy(logits_KV)
    student_KV = teacher_KV.roll(1, -1)
    first = data.draw(st.integers(0, len(teacher_KV)))
    rows = slice(first, data.draw(st.integers(first, len(teacher_KV))))
    targets = round_trip(codec(name), predictions_of(qa=teacher_KV))["qa"]
    some_MV = targets.log_probs(rows, student_KV[rows], TEMPERATURE)
    torch.testing.assert_close(some_MV, softened(targets, student_KV)[rows], rtol=1e-6, atol=1e-6)


@every_codec
def test_a_payload_shares_no_memory_with_the_model(name: str) -> None:
    """With logits it may, since nobody writes to them."""
    predictions = predictions_of(qa=torch.arange(10.0).reshape(2, 5), lm=torch.ones(3, 5))
    layer = predictions.output
    assert layer is not None
    own = [*predictions.hidden.values(), layer.weight_VD]
    read = [*predictions.logits.values(), *own]
    before = [tensor.clone() for tensor in read]
    payload = codec(name).encode(predictions, 1)
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(read, before, strict=True))
    written = {key: tensor.clone() for key, tensor in payload.tensors.items()}
    for tensor in own:  # like the update of the step, before the payload is read
        tensor.fill_(-7.0)
    assert all(torch.equal(payload.tensors[key], written[key]) for key in written)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in payload.tensors.values())


@every_codec
def test_equal_seeds_give_equal_payloads(name: str) -> None:
    predictions = predictions_of(qa=torch.zeros(4, 30))
    one, other = (codec(name).encode(predictions, 3) for _ in range(2))
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


@every_codec
def test_predictions_without_positions_or_heads_can_be_encoded(name: str) -> None:
    own = codec(name)
    received = round_trip(own, predictions_of(qa=torch.empty(0, 7), lm=torch.ones(2, 7)))
    assert {head: targets.num_positions for head, targets in received.items()} == {"qa": 0, "lm": 2}
    assert softened(received["qa"], torch.empty(0, 7)).shape == (0, 7)
    assert round_trip(own, predictions_of()) == {}


@every_codec
def test_write_protected_memory_is_read_without_a_warning(name: str) -> None:
    torch.set_warn_always(True)  # PyTorch otherwise warns only once per process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            softened(round_trip(codec(name), predictions_of(qa=torch.ones(2, 5)))["qa"], torch.ones(2, 5))
    finally:
        torch.set_warn_always(False)


@every_codec
def test_a_learner_never_writes_to_a_received_payload(name: str) -> None:
    """PyTorch ignores numpy's write protection, and the memory is shared by all readers."""
    tok = small.tokenizer()
    teacher, student = small.begun(small.peers(small.experiment(), tok), small.tokens(tok))
    own = codec(name)
    payload = write_protected(own.encode(teacher.forward(0), 0))
    before = {key: tensor.clone() for key, tensor in payload.tensors.items()}
    student.forward(0)
    figures = student.backward(0, [own.decode(payload)])
    assert all(torch.equal(payload.tensors[key], before[key]) for key in before)
    assert figures["kd_qa"] > 0 and np.isfinite(figures["kd_lm"])


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("dense", 8 * 11 * 4),
        ("dense float16", 8 * 11 * 2),
        ("factored", (8 + 11) * 11 * 4),
        ("auto", 8 * 11 * 4),
        ("topk 3", 8 * (3 * (4 + 4) + 4)),
        ("topk 100", 8 * (11 * (4 + 4) + 4)),
        ("sampled 7", 8 * 7 * 4),
        ("mean", 8 * 11 * 4),
    ],
)
def test_payload_sizes(name: str, num_bytes: int) -> None:
    predictions = predictions_of(qa=torch.zeros(3, 11), lm=torch.zeros(5, 11))
    assert codec(name).encode(predictions, 0).num_bytes == num_bytes
    assert Payload().num_bytes == 0


@pytest.mark.parametrize(("name", "writer"), [("dense float16", "dense"), ("topk 3", "topk"), ("auto", "dense")])
def test_a_payload_names_the_codec_that_can_decode_it(name: str, writer: str) -> None:
    assert codec(name).encode(predictions_of(qa=torch.zeros(3, 11)), 0).codec == writer


@pytest.mark.parametrize("name", ["topk 3", "sampled 7", "mean"])
def test_softened_targets_are_refused_at_another_temperature(name: str) -> None:
    targets = round_trip(codec(name), predictions_of(qa=torch.zeros(1, 5)))["qa"]
    with pytest.raises(ValueError, match=r"computed at temperature 2; they cannot be converted to 1\.5"):
        targets.log_probs(slice(0, 1), torch.zeros(1, 5), 1.5)


@pytest.mark.parametrize("name", ["mean", "sampled 7"])
def test_codecs_without_a_probability_for_every_token_refuse_the_reverse_divergence(name: str) -> None:
    with pytest.raises(ConfigError, match=r"direction: reverse .* set distillation\.direction: forward, or"):
        codec(name, direction="reverse")


@pytest.mark.parametrize("name", ["dense", "dense float16", "factored", "auto", "topk 3"])
def test_all_other_codecs_support_the_reverse_divergence(name: str) -> None:
    teacher_KV = torch.linspace(-9, 9, 40).reshape(1, 40)
    received_KV = softened(
        round_trip(codec(name, direction="reverse"), predictions_of(qa=teacher_KV))["qa"], teacher_KV
    )
    assert received_KV.isfinite().all()


@pytest.mark.parametrize("name", ["factored", "topk", "sampled", "mean"])
def test_float16_is_refused_for_codecs_that_it_does_not_apply_to(name: str) -> None:
    exchange = ExchangeConfig.model_validate({"codec": name, "precision": "float16"})
    with pytest.raises(ConfigError, match=rf"precision: float16 applies .*codec: {name} does not send; set .*float32"):
        build_codec(exchange, small.experiment())


@given(logits)
def test_float32_is_exact(logits_KV: np.ndarray) -> None:
    predictions = predictions_of(qa=torch.from_numpy(logits_KV))
    received = write_protected(codec("dense").encode(predictions, 0)).tensors["qa"]
    assert received.dtype == torch.float32
    assert torch.equal(received, predictions.logits["qa"])


@given(logits)
def test_float16_is_accurate_for_likely_tokens(logits_KV: np.ndarray) -> None:
    """float16 has 11 bits: the error of an entry d below the maximum is at most d / 2048, and so is its row sum's."""
    predictions = predictions_of(qa=torch.from_numpy(logits_KV))
    expected = predictions.log_probs("qa")
    targets = round_trip(codec("dense float16"), predictions)["qa"]
    received = targets.log_probs(slice(0, len(expected)), expected, 1.0)
    if not expected.numel():
        return
    below = expected.amax(-1, keepdim=True) - expected
    assert ((received - expected).abs() <= (below + below.amax(-1, keepdim=True)) / 2048 + 1e-4).all()
    # For learning: probabilities differ by less than p * d / 2048 <= 0.2 %, because x e^-x is small.
    assert ((received.exp() - expected.exp()).abs() < 2e-3).all()


def test_float16_resolves_log_probabilities_near_minus_100() -> None:
    """Uncentred, float16 numbers near -100 are 1/16 apart; here the two best tokens differ by 0.01."""
    rows = torch.cat([torch.tensor([[-100.0, -100.01]]), torch.full((1, 50), -160.0)], dim=1)
    received = round_trip(codec("dense float16"), predictions_of(lm=rows))["lm"].log_probs(slice(0, 1), rows, 1.0)
    assert float(received[0, 0] - received[0, 1]) == pytest.approx(0.01, abs=1e-4)
    assert float(rows.half()[0, 0] - rows.half()[0, 1]) == 0.0, "why centring is needed"


def test_float16_handles_logits_beyond_its_range() -> None:
    rows = torch.tensor([[0.0, -1e6], [-1e6, 0.0]])
    received = softened(round_trip(codec("dense float16"), predictions_of(qa=rows))["qa"], rows)
    assert torch.equal(received.exp(), torch.eye(2))


def test_only_factored_needs_an_output_layer() -> None:
    plain = Predictions({"qa": torch.zeros(2, 5)})
    for name in SETTINGS.keys() - {"factored"}:
        assert round_trip(codec(name), plain)["qa"].num_positions == 2
