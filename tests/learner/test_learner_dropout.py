"""Setting the dropout of pretrained models of several architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import OPTConfig, PreTrainedConfig

from ray_l4.config.model import LoraConfig, ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.models import build_model, describe, same_architecture, set_dropout
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
