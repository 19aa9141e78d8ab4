"""Models that see later tokens are refused; all kinds that generate text are not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    CTRLConfig,
    ElectraConfig,
    GemmaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    RwkvConfig,
    XLMConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

from ray_l4.config.model import ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.causality import refuse_if_not_causal
from ray_l4.learner.models import build_model, load_folder
from tests.learner import learner_fixtures as small
from tests.learner.architectures import COHERE, GEMMA2, GPT2, GRANITE, LLAMA, NEOX, SIZES, untrained

GROUPED = {**SIZES, "num_key_value_heads": 2}
CAUSAL: list[PreTrainedConfig] = [
    GPT2,
    LLAMA,
    NEOX,
    GRANITE,
    COHERE,
    GEMMA2,
    Qwen2Config(**GROUPED),
    Qwen3Config(**GROUPED, head_dim=8),
    GemmaConfig(**GROUPED, head_dim=8),
    MistralConfig(**GROUPED, sliding_window=4),
    MixtralConfig(**GROUPED, num_local_experts=4),
    OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16),
    MambaConfig(**SIZES),
    CTRLConfig(**SIZES, dff=32),  # scales the embedded tokens in place
    RwkvConfig(**SIZES, attention_hidden_size=16, context_length=32),  # has a state of its own, if allowed
    XLMConfig(vocab_size=64, emb_dim=16, n_layers=2, n_heads=2, causal=True),
]
BLIND: list[PreTrainedConfig] = [
    RobertaConfig(**SIZES),
    BertConfig(**SIZES),
    XLMRobertaConfig(**SIZES),
    ElectraConfig(**SIZES, embedding_size=16),
    XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=32),
    *(XLMConfig(vocab_size=64, emb_dim=16, n_layers=2, n_heads=2, pad_index=pad) for pad in (2, 44)),  # 44 was last
]


@pytest.mark.parametrize("config", CAUSAL, ids=lambda config: config.model_type)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_that_generate_text_pass(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    model = untrained(config).to(dtype).train()
    state = torch.get_rng_state()
    refuse_if_not_causal(model, "m", "model.name")
    assert model.training, "and are left as they were"
    assert not model.get_input_embeddings()._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("config", BLIND, ids=lambda config: config.model_type)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_that_see_later_tokens_are_refused(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    model = untrained(config).to(dtype)
    with pytest.raises(ModelError, match=r"^model\.name: 'm' \(\w+\) is not a causal language model"):
        refuse_if_not_causal(model, "m", "model.name")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_architecture_as_a_decoder_passes() -> None:
    refuse_if_not_causal(untrained(RobertaConfig(**SIZES, is_decoder=True)), "m", "model.name")


def test_a_model_whose_settings_name_an_encoder_is_refused() -> None:
    model = untrained(copy.deepcopy(CAUSAL[0]))
    model.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match=r"'m' [(].*has an encoder"):
        refuse_if_not_causal(model, "m", "model.name")


def test_they_are_refused_when_they_are_loaded(tmp_path: Path) -> None:
    tok = small.tokenizer()
    untrained(RobertaConfig(**SIZES | {"vocab_size": tok.size})).save_pretrained(tmp_path)
    tok.save(tmp_path)
    with pytest.raises(ModelError, match="not a causal"):
        build_model(ModelConfig(name=str(tmp_path)), tok, 0)
    with pytest.raises(ModelError, match="not a causal"):
        load_folder(tmp_path)
