"""Masks of dropout, and setting the dropout of pretrained models of several architectures."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import OPTConfig, PreTrainedConfig

from ray_l4.config.model import LoraConfig, ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.dropout import Dropout, keep_mask, use_cheap_masks
from ray_l4.learner.models import build_model, describe, has_dropout, same_architecture, set_dropout
from tests.learner import learner_fixtures as small
from tests.learner.adapter_fixtures import CONFIGS, save_base
from tests.learner.architectures import GPT2, LLAMA, NEOX, SIZES, tokens, untrained

OPT = OPTConfig(**SIZES, word_embed_proj_dim=16, ffn_dim=32, dropout=0.0)
ARCHITECTURES = {"gpt2": GPT2, "llama": LLAMA, "neox": NEOX, "opt": OPT}


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_dropout_that_was_set_is_applied(config: PreTrainedConfig, dropout: float) -> None:
    model = untrained(config).train()
    set_dropout(model, dropout, "it")
    torch.manual_seed(0)
    first, second = (model(input_ids=tokens()).logits for _ in range(2))
    assert torch.equal(first, second) == (dropout == 0.0)
    again = model.eval()
    assert torch.equal(again(input_ids=tokens()).logits, again(input_ids=tokens()).logits)


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_only_dropout_changes_in_the_description(config: PreTrainedConfig) -> None:
    model = untrained(config)
    before = describe(model)
    set_dropout(model, 0.25, "it")
    after = describe(model)
    changed = {name for name in before if before[name] != after[name]}
    assert changed and all("drop" in name for name in changed)
    assert {after[name] for name in changed} == {0.25}
    assert not any(name.startswith(("summary", "classifier", "layerdrop")) for name in changed)
    assert same_architecture(before, after)


def test_models_of_different_sizes_have_different_architectures() -> None:
    assert not same_architecture(describe(untrained(GPT2)), describe(untrained(LLAMA)))
    one = describe(untrained(GPT2))
    assert not same_architecture(one, one | {"n_layer": 3})


def test_a_model_without_dropout_is_refused() -> None:
    model = untrained(GPT2)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())
    with pytest.raises(ModelError, match=r"peers\.each: a dropout of 0\.1 .* 'it' has no layer with dropout"):
        set_dropout(model, 0.1, "it")


@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_applies_to_the_pretrained_model_but_not_to_adapters(name: str, tmp_path: Path) -> None:
    folder = str(save_base(tmp_path / "base", CONFIGS[name]))
    tok = small.tokenizer()
    plain, changed = (build_model(ModelConfig(name=folder), tok, 3, dropout) for dropout in (None, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), changed.parameters(), strict=True))
    assert describe(plain) != describe(changed)
    adapted = build_model(ModelConfig(name=folder, lora=LoraConfig(rank=2, dropout=0.05)), tok, 3, 0.3)
    rates = {module.p for path, module in adapted.named_modules() if isinstance(module, nn.Dropout) and "lora" in path}
    assert rates == {0.05}


WORDS = 200_000
"""Draws of 64 bits, of which each serves four elements of a mask."""


@pytest.mark.parametrize("rate", [0.1, 0.5, 1e-5, 0.99999])
def test_a_mask_drops_at_the_rate_and_keeps_the_expectation(rate: float) -> None:
    torch.manual_seed(0)
    keep, factor = keep_mask((WORDS, 4), rate)
    assert (keep.dtype, keep.shape) == (torch.bool, (WORDS, 4))
    rounded = round(rate * 2**16) / 2**16
    assert abs(rounded - rate) <= 2**-17 and 0 < rounded < 1
    assert factor == pytest.approx(1 / (1 - rounded), rel=1e-12)
    count = 4 * WORDS
    allowed = 5 * math.sqrt(rounded * (1 - rounded) / count)
    assert abs(float(keep.double().mean()) - (1 - rounded)) < allowed
    assert abs(float(keep.double().mean()) * factor - 1) < allowed * factor
    of_each = keep.double().mean(dim=0)  # all four elements of a draw alike
    assert float((of_each - (1 - rounded)).abs().max()) < 2 * allowed


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_elements_of_a_mask_are_independent(rate: float) -> None:
    """Those of one draw, and those of neighbouring draws."""
    torch.manual_seed(1)
    keep, _ = keep_mask((WORDS, 4), rate)
    both = torch.cat([keep[:-1], keep[1:]], dim=1).double()
    correlations = torch.corrcoef(both.T) - torch.eye(8, dtype=torch.float64)
    assert float(correlations.abs().max()) < 5 / math.sqrt(WORDS)


@given(shape=st.lists(st.integers(0, 9), max_size=4), seed=st.integers(0, 99), rate=st.sampled_from((0.1, 0.5)))
def test_a_mask_follows_from_the_seed(shape: list[int], seed: int, rate: float) -> None:
    torch.manual_seed(seed)
    first, factor = keep_mask(tuple(shape), rate)
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    again, _ = keep_mask(torch.Size(shape), rate)
    assert first.shape == torch.Size(shape) and factor > 1
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), after)
    following, _ = keep_mask((4096,), rate)
    torch.manual_seed(seed)
    assert not torch.equal(following, keep_mask((4096,), rate)[0]) or not first.numel()


def test_other_seeds_give_other_masks() -> None:
    masks = []
    for seed in range(3):
        torch.manual_seed(seed)
        masks.append(keep_mask((4096,), 0.5)[0])
    for one, other in combinations(masks, 2):
        assert abs(float((one == other).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_multiplies_what_is_kept_and_its_gradient(dtype: torch.dtype) -> None:
    layer = cheap(0.3)
    values = torch.linspace(1, 2, 3000).view(30, 100).to(dtype).requires_grad_()
    torch.manual_seed(0)
    dropped = layer(values)
    torch.manual_seed(0)
    keep, factor = keep_mask((30, 100), 0.3)
    assert torch.equal(dropped, (values.detach() * keep) * factor)
    assert dropped.dtype == dtype
    dropped.backward(torch.ones_like(dropped))
    assert values.grad is not None and torch.equal(values.grad, (keep * torch.tensor(factor)).to(dtype))


def cheap(rate: float) -> nn.Module:
    model = nn.Sequential(nn.Dropout(rate))
    use_cheap_masks(model)
    assert type(model[0]) is Dropout
    return model.train()


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_without_training_values_pass_unchanged(rate: float) -> None:
    values, random = torch.randn(5, 6), torch.get_rng_state()
    assert torch.equal(cheap(rate).eval()(values), values)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_rate_of_zero_keeps_and_a_rate_of_one_drops_everything() -> None:
    values = torch.randn(5, 6)
    assert torch.equal(cheap(0.0)(values), values)
    assert not cheap(1.0)(values).any()


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_cheap_masks_change_nothing_but_the_masks(config: PreTrainedConfig) -> None:
    model, twin = untrained(config), untrained(config)
    use_cheap_masks(model)
    assert not any(type(module) is nn.Dropout for module in model.modules())
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert all(torch.equal(one, twin.state_dict()[name]) for name, one in model.state_dict().items())
    assert str(model) == str(twin) and describe(model) == describe(twin)
    assert torch.equal(model(input_ids=tokens()).logits, twin(input_ids=tokens()).logits)
    for rate in (0.4, 0.0):
        for both in (model, twin):
            set_dropout(both.train(), rate, "it")
        assert has_dropout(model) == has_dropout(twin) == (rate > 0)
        for both in (model, twin):
            torch.manual_seed(0)
            first, second = (both(input_ids=tokens()).logits for _ in range(2))
            assert torch.equal(first, second) == (rate == 0)


def test_layers_of_another_kind_keep_their_own_dropout() -> None:
    class Own(nn.Dropout):
        """Dropout of an architecture of its own."""

    model = nn.Sequential(Own(0.5), nn.Dropout2d(0.5), nn.Dropout(0.5))
    use_cheap_masks(model)
    assert [type(module) for module in model] == [Own, nn.Dropout2d, Dropout]


def test_activations_that_are_computed_again_have_the_same_masks() -> None:
    layer, values = cheap(0.5), torch.randn(40, 50, requires_grad=True)
    found = []
    for again in (False, True):
        torch.manual_seed(2)
        dropped = checkpoint(layer, values, use_reentrant=False) if again else layer(values)
        torch.rand(5)  # others draw between the two passes
        found.append(torch.autograd.grad(dropped.sin().sum(), values)[0])
    assert torch.equal(*found)
    assert 0.4 < float((found[0] == 0).double().mean()) < 0.6
