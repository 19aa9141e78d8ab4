"""Small pretrained models in folders, and adapters on them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.models import build_model, describe, to_bytes
from ray_l4.store.records import write_checkpoint
from ray_l4.text.base_tokenizer import train_base
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2, tied": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "llama, tied": LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**_LLAMA, tie_word_embeddings=False),
}
TASKS = ("a", "b")
IDS = torch.randint(300, (3, 9), generator=torch.Generator().manual_seed(1))


def save_base(folder: Path, config: PreTrainedConfig, spare_rows: int = 0) -> Path:
    """Save a model and its tokeniser without task tokens; the model has ``spare_rows`` more rows than tokens."""
    texts = [text for task in TASKS for text in small.examples(task, 20)["context"].to_pylist()]
    tokenizer = train_base([*texts, "how does a begin ?"], 400)
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = type(config).from_dict(config.to_dict() | ids | {"vocab_size": len(tokenizer) + spare_rows})
    torch.manual_seed(11)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def experiment(base: Path, **lora: object) -> ExperimentConfig:
    """Make an experiment with adapters on the model in ``base``."""
    return small.experiment(
        model={"name": str(base), "spare_task_tokens": 2, "lora": {"rank": 4, "alpha": 8, **lora}},
        optim={"variant": "torch", "lr": 1e-2, "eps": 1e-8},
    )


def tokenizer(base: Path) -> TaskTokenizer:
    """Load the base's tokeniser and add task tokens."""
    return TaskTokenizer.pretrained(base, TASKS, 2)


def disturb(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Change all trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def save_checkpoint(folder: Path, model: PreTrainedModel, tok: TaskTokenizer) -> Path:
    """Write a checkpoint as a run does."""
    (folder / "tokenizer").mkdir(parents=True)
    tok.save(folder / "tokenizer")
    write_checkpoint(folder / "student-0", to_bytes(model), describe(model), folder / "tokenizer")
    return folder / "student-0"


def build(base: Path, seed: int = 0, **lora: object) -> tuple[PreTrainedModel, TaskTokenizer]:
    """Build the model in ``base`` with adapters that have no effect yet."""
    tok = tokenizer(base)
    return build_model(experiment(base, **lora).model, tok, seed).eval(), tok


def added(tok: TaskTokenizer) -> list[int]:
    """List the ids of the tokens that the base does not have."""
    return sorted({tok.ans, tok.pad, tok.unk, *tok.gen.values(), *tok.spares})


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """Return the model's logits, with new tokens in both input and output."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.cat([IDS, torch.arange(rows - 9, rows).unsqueeze(0)])
    return model.eval()(input_ids=ids).logits
