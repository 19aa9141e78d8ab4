"""Tiny untrained models of several architectures: plain heads, tied and untied, and heads that scale or cap."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ray_l4.learner.position_logits import Outputs, PositionLogits

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
LLAMA = LlamaConfig(**SIZES, tie_word_embeddings=False)
NEOX = GPTNeoXConfig(**SIZES)
GRANITE = GraniteConfig(**SIZES, logits_scaling=8.0)
COHERE = CohereConfig(**SIZES, logit_scale=0.0625)
GEMMA2 = Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=30.0)


def untrained(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a model with a configuration of its own, which a change of its attention changes."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


def run_whole(chosen: PositionLogits, ids_RT: torch.Tensor, positions_N: torch.Tensor) -> Outputs:
    """Run a model on rows that have no padding."""
    outputs: Outputs = chosen(ids_RT, positions_N, [ids_RT.shape[1]] * len(ids_RT))
    return outputs


def logits_at(chosen: PositionLogits, ids_RT: torch.Tensor, positions_N: torch.Tensor) -> torch.Tensor:
    """Return the logits at some positions of rows that have no padding, with their graph."""
    hidden_ND, logits_NV = run_whole(chosen, ids_RT, positions_N)
    if logits_NV is None:
        assert chosen.head is not None
        logits_NV = chosen.head(hidden_ND)
    return logits_NV


def tokens(rows: int = 3, time: int = 9) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(1))
