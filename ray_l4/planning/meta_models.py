"""Models and tokenisers as far as their configuration tells: shapes without weights, ids without text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import AutoModelForCausalLM, PreTrainedModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.model import ModelConfig
from ray_l4.learner.adapters import add_adapters
from ray_l4.learner.models import build_model, longest_sequence, max_length, pretrained_config, set_dropout
from ray_l4.learner.pretrained import grow

_OWN_TOKENS = 3
"""ANS, PAD and UNK (REFERENCE.md#added-tokens)."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model and a batch need to know of a tokeniser: how many ids there are, and which are special.

    The text of the stream may yield a smaller base vocabulary than was asked for, and a pretrained model may have spare
    rows; so this is the largest that there can be.
    """

    base: int
    """Entries before the added tokens."""
    tasks: int
    """Task tokens, taken and spare."""
    eos: int = 0

    @property
    def size(self) -> int:
        """All entries."""
        return self.base + _OWN_TOKENS + self.tasks

    @property
    def ans(self) -> int:
        return self.base

    @property
    def pad(self) -> int:
        return self.base + 1

    @property
    def unk(self) -> int:
        return self.base + 2

    @property
    def task_tokens(self) -> list[int]:
        """Ids of the task tokens."""
        return list(range(self.base + _OWN_TOKENS, self.size))


def vocabulary(experiment: ExperimentConfig) -> Vocabulary:
    """The vocabulary that the peers share. Raises ModelError if a named model has no configuration."""
    model = experiment.model
    if model.from_scratch is not None:
        base = model.from_scratch.vocabulary
    else:
        base = int(pretrained_config(str(model.name)).vocab_size)
    return Vocabulary(base, len(experiment.stream) + model.spare_task_tokens)


def longest(model: ModelConfig) -> int:
    """Longest sequence in tokens. Raises ModelError as ``learner.models.max_length`` does."""
    if model.from_scratch is not None:
        return longest_sequence(model.from_scratch.positions, model.max_length)
    return max_length(pretrained_config(str(model.name)), model.max_length)


def blank_student(config: ModelConfig, tokens: Vocabulary, dropout: float | None = None) -> PreTrainedModel:
    """The model that ``learner.models.build_model`` would give, from its configuration alone.

    Call it within ``FakeTensorMode``, where it takes no memory. Raises ModelError if there is no such configuration.
    """
    tokenizer = cast(Any, tokens)
    if config.from_scratch is not None:
        return build_model(config, tokenizer, 0)
    name = str(config.name)
    # Not at once without data but on the right device: PyTorch cannot move such modules, as peft does.
    with unset_fake_temporarily(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(pretrained_config(name), dtype=torch.float32)
        if dropout is not None:
            set_dropout(model, dropout, name)
        drawn = grow(model, tokens.size)
        if config.lora is not None:
            add_adapters(model, config.lora, name, {*drawn, tokens.ans, tokens.pad, tokens.unk, *tokens.task_tokens})
    _bring_to_cpu(model)
    return model


def _bring_to_cpu(model: nn.Module) -> None:
    """Put an empty tensor on the CPU in the place of every one on the meta device; what was shared stays shared."""
    moved: dict[Tensor, Tensor] = {}

    def on_cpu(tensor: Tensor) -> Any:
        if tensor not in moved:
            empty = torch.zeros(tensor.shape, dtype=tensor.dtype)
            moved[tensor] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return moved[tensor]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held.update({name: on_cpu(tensor) for name, tensor in held.items() if tensor is not None})


@torch.no_grad()
def head_is_one_product(model: PreTrainedModel) -> bool:
    """Whether logits are one product of the last hidden states, as ``PositionLogits`` finds out by their values.

    Without values it shows in the storages: what the head is given is what the base model made, and what it gives is
    what the whole model gives.
    """
    head, base = model.get_output_embeddings(), model.base_model
    if head is None or base is model:
        return False
    seen: dict[str, Any] = {}

    def note_states(module: nn.Module, inputs: Any, outputs: Any) -> None:
        seen["states"] = outputs.last_hidden_state

    def note_product(module: nn.Module, inputs: Any, product: Any) -> None:
        seen["given"], seen["product"] = inputs[0], product

    hooks = [base.register_forward_hook(note_states), head.register_forward_hook(note_product)]
    logits = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
    for hook in hooks:
        hook.remove()
    pairs = ((seen["states"], seen["given"]), (seen["product"], logits))
    return all(one.untyped_storage() is other.untyped_storage() for one, other in pairs)


@dataclass(frozen=True)
class Parameters:
    """How many numbers a model holds; tied ones count once."""

    total: int
    trainable: int
    largest_block: int
    """Those of the largest of the layers that follow one another."""
    outside_blocks: int
    """Embeddings, and all else that belongs to no such layer."""


def count_parameters(model: nn.Module) -> Parameters:
    """Exact numbers of parameters."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()), default=nn.ModuleList())
    blocks = [sum(p.numel() for p in block.parameters()) for block in layers]
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Parameters(total, trainable, max(blocks, default=0), total - sum(blocks))
