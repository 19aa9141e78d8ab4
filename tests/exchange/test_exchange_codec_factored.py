"""The factored codec reproduces a model's predictions exactly, and auto selects the smaller payload."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PhiConfig, PreTrainedConfig

from ray_l4.errors import ModelError
from ray_l4.exchange.codecs.auto import Auto
from ray_l4.exchange.codecs.dense import Dense
from ray_l4.exchange.codecs.factored import Factored
from ray_l4.learner.position_logits import PositionLogits
from ray_l4.learner.predictions import OutputLayer, Predictions
from ray_l4.learner.stage_run import StageRun
from tests.exchange.codec_fixtures import codec, predictions_of, round_trip, softened
from tests.learner import learner_fixtures as small
from tests.learner.architectures import GPT2, GRANITE, LLAMA, NEOX, SIZES, logits_at, run_whole, tokens, untrained

PHI = PhiConfig(**SIZES)  # has a bias in its output layer


def predicted(config: PreTrainedConfig) -> Predictions:
    """Predict some positions with a model of that architecture, whose weights are large enough to matter."""
    model = untrained(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20)
        if (bias := model.get_output_embeddings().bias) is not None:
            bias.normal_()
    chosen = PositionLogits(model)
    with torch.no_grad():
        positions_N = torch.tensor([26, 0, 13, 13, 7])
        outputs = run_whole(chosen, tokens(), positions_N)
        qa, lm = logits_at(chosen, tokens(), positions_N).split([2, 3])
    if outputs.hidden_ND is None:
        return Predictions({"qa": qa, "lm": lm})
    hidden = outputs.hidden_ND.split([2, 3])
    return Predictions({"qa": qa, "lm": lm}, dict(zip(("qa", "lm"), hidden, strict=True)), chosen.output_layer)


@pytest.mark.parametrize("config", [GPT2, LLAMA, NEOX, PHI], ids=lambda config: config.model_type)
def test_factored_equals_dense(config: PreTrainedConfig) -> None:
    predictions = predicted(config)
    assert predictions.output is not None
    assert (predictions.output.bias_V is not None) == (config is PHI)
    factored, dense = (round_trip(codec(name), predictions) for name in ("factored", "dense"))
    for head, logits_KV in predictions.logits.items():
        expected = softened(dense[head], logits_KV)
        assert expected.std() > 0.5, "predictions that differ from token to token"
        torch.testing.assert_close(softened(factored[head], logits_KV), expected, rtol=0, atol=1e-5)


def test_a_model_whose_logits_are_not_one_product_cannot_be_factored() -> None:
    predictions = predicted(GRANITE)
    with pytest.raises(ModelError, match=r"factored sends .* not simply their product .* set exchange.codec: auto"):
        codec("factored").encode(predictions, 0)
    payload = codec("auto").encode(predictions, 0)
    assert payload.codec == "dense"
    assert torch.equal(payload.tensors["qa"], predictions.logits["qa"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_with_factored_targets_equals_one_with_log_probabilities(precision: str) -> None:
    gradients = {}
    for name in ("dense", "factored"):
        teacher, student = begun(precision)
        own = codec(name, precision=precision)
        taken = small.record_gradients(student)
        student.forward(0)
        student.backward(0, [round_trip(own, teacher.forward(0))])
        (gradients[name],) = taken
    for name, dense in gradients["dense"].items():
        error = (gradients["factored"][name] - dense).norm()
        assert float(error) <= 1e-5 * max(float(dense.norm()), 1e-2), name


def begun(precision: str) -> list[StageRun]:
    """Begin a stage with a teacher and a student of different weights."""
    model = small.experiment().model.model_dump(exclude_unset=True) | {"precision": precision}
    tok = small.tokenizer()
    learners = small.unlike(small.peers(small.experiment(model=model, peers={"init": "own"}), tok))
    return small.begun(learners, small.tokens(tok))


def test_bfloat16_factors_are_lossless_for_bfloat16_products() -> None:
    teacher, _ = begun("bfloat16")
    predictions = teacher.forward(0)
    payload = codec("factored", precision="bfloat16").encode(predictions, 0)
    assert {tensor.dtype for tensor in payload.tensors.values()} == {torch.bfloat16}
    assert payload.num_bytes == 2 * sum(tensor.numel() for tensor in payload.tensors.values())
    received = round_trip(codec("factored", precision="bfloat16"), predictions)
    for head, logits_KV in predictions.logits.items():
        assert logits_KV.dtype == torch.bfloat16
        torch.testing.assert_close(
            received[head].log_probs(slice(0, None), logits_KV, 1.0), predictions.log_probs(head)
        )


def test_a_float32_peer_decodes_the_payload_of_a_bfloat16_peer() -> None:
    predictions = predictions_of(qa=torch.linspace(-3, 3, 12).reshape(2, 6))
    payload = codec("factored", precision="bfloat16").encode(predictions, 0)
    received = softened(codec("factored").decode(payload)["qa"], predictions.logits["qa"])
    torch.testing.assert_close(received, (predictions.logits["qa"] / 2).log_softmax(-1), rtol=0, atol=2e-2)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 40), st.integers(1, 40), st.booleans(), st.booleans())
def test_auto_sends_the_smaller_payload(
    qa: int, lm: int, vocab: int, width: int, with_bias: bool, narrow: bool
) -> None:
    predictions = Predictions(
        {"qa": torch.zeros(qa, vocab), "lm": torch.zeros(lm, vocab)},
        {"qa": torch.zeros(qa, width), "lm": torch.zeros(lm, width)},
        OutputLayer(torch.zeros(vocab, width), torch.zeros(vocab) if with_bias else None),
    )
    both: dict[str, Any] = {"dense": Dense(torch.float16 if narrow else torch.float32), "factored": Factored()}
    payload = Auto(**both).encode(predictions, 0)
    sizes = {name: own.encode(predictions, 0).num_bytes for name, own in both.items()}
    assert payload.num_bytes == min(sizes.values()) == sizes[payload.codec]
    assert sizes["dense"] == both["dense"].num_bytes(predictions)
    assert sizes["factored"] == both["factored"].num_bytes(predictions)
    if not with_bias and not narrow and vocab > width:
        assert (payload.codec == "factored") == (qa + lm > vocab * width / (vocab - width))


def test_auto_decodes_payloads_of_both_codecs() -> None:
    few, many = (
        predictions_of(qa=torch.randn(3, 20)),
        Predictions({"qa": torch.ones(30, 20)}, {"qa": torch.ones(30, 1)}, OutputLayer(torch.ones(20, 1), None)),
    )
    auto = codec("auto")
    assert [auto.encode(own, 0).codec for own in (few, many)] == ["dense", "factored"]
    for own in (few, many):
        received = softened(round_trip(auto, own)["qa"], own.logits["qa"])
        torch.testing.assert_close(received, (own.logits["qa"] / 2).log_softmax(-1))


def test_for_gpt2_factored_is_smaller_from_780_positions() -> None:
    """The break-even point V d / (V - d) for 50,257 tokens and a width of 768."""
    layer = OutputLayer(torch.empty(50257, 768, device="meta"), None)
    chosen = []
    for positions in (779, 780):
        shape = {"qa": torch.empty(positions, 50257, device="meta")}
        predictions = Predictions(shape, {"qa": torch.empty(positions, 768, device="meta")}, layer)
        factored = Factored().num_bytes(predictions)
        assert factored is not None
        chosen.append(factored < Dense(torch.float32).num_bytes(predictions))
    assert chosen == [False, True]
