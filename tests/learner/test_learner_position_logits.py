"""Logits at chosen positions, for models whose logits are a single matrix product and for others."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedConfig

from ray_l4.learner.models import to_bytes
from ray_l4.learner.position_logits import PositionLogits
from tests.learner.architectures import (
    COHERE,
    GEMMA2,
    GPT2,
    GRANITE,
    LLAMA,
    NEOX,
    logits_at,
    run_whole,
    tokens,
    untrained,
)


@pytest.mark.parametrize("config", [GPT2, LLAMA, NEOX], ids=lambda config: config.model_type)
def test_a_plain_head_is_applied_to_the_chosen_positions_only(config: PreTrainedConfig) -> None:
    model = untrained(config)
    chosen = PositionLogits(model)
    assert chosen.direct
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    positions_N = torch.tensor([26, 0, 13, 13])
    expected = model(input_ids=tokens()).logits.flatten(0, 1)[positions_N]
    torch.testing.assert_close(logits_at(chosen, tokens(), positions_N), expected)
    assert rows[-1] == 4
    layer, outputs = chosen.output_layer, run_whole(chosen, tokens(), positions_N)
    assert layer is not None and outputs.hidden_ND is not None and outputs.logits_NV is None
    torch.testing.assert_close(layer.logits(outputs.hidden_ND), expected.detach())


@pytest.mark.parametrize("config", [GRANITE, COHERE, GEMMA2], ids=lambda config: config.model_type)
def test_other_heads_compute_the_logits_of_all_positions(config: PreTrainedConfig) -> None:
    model = untrained(config)
    chosen = PositionLogits(model)
    assert not chosen.direct
    positions_N = torch.tensor([26, 0, 13, 13])
    expected = model(input_ids=tokens()).logits.flatten(0, 1)[positions_N]
    outputs = run_whole(chosen, tokens(), positions_N)
    torch.testing.assert_close(outputs.logits_NV, expected)
    assert outputs.hidden_ND is None and chosen.output_layer is None


def test_a_soft_cap_is_detected_before_it_takes_effect() -> None:
    """The model is probed while untrained, when its logits are so small that the cap has no effect."""
    model = untrained(GEMMA2)
    chosen = PositionLogits(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100)
    logits = logits_at(chosen, tokens(), torch.arange(27)).detach()
    assert 20 < float(logits.abs().max()) <= 30
    torch.testing.assert_close(logits, model(input_ids=tokens()).logits.flatten(0, 1).detach())


@pytest.mark.parametrize("config", [GPT2, GRANITE], ids=["direct", "whole"])
def test_gradients_equal_those_of_the_model(config: PreTrainedConfig) -> None:
    positions_N = torch.tensor([2, 5, 20])
    model, twin = untrained(config), untrained(config)
    logits_at(PositionLogits(model), tokens(), positions_N).logsumexp(-1).sum().backward()
    twin(input_ids=tokens()).logits.flatten(0, 1)[positions_N].logsumexp(-1).sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_probing_the_head_has_no_side_effects(training: bool) -> None:
    model = untrained(GPT2).train(training)
    before, random = to_bytes(model).tobytes(), torch.get_rng_state()
    PositionLogits(model)
    assert model.training == training
    assert to_bytes(model).tobytes() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.get_output_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_padding_on_the_right_does_not_affect_earlier_positions() -> None:
    """Therefore no attention mask is needed."""
    chosen = PositionLogits(untrained(GPT2))
    padded, longer = tokens(1), tokens(1)
    padded[0, 5:] = 0
    first, second = (logits_at(chosen, ids, torch.arange(5)) for ids in (padded, longer))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
