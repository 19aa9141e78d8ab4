"""Models and tokenisers built from configuration alone: tensor shapes without weights, token ids without text."""

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
from ray_l4.learner.model_config import pretrained_config
from ray_l4.learner.models import build_model, set_dropout
from ray_l4.learner.pretrained import grow, recompute_activations
from ray_l4.text.model_location import located

_NUM_ADDED = 3
"""ANS, PAD and UNK (REFERENCE.md#added-tokens)."""


@dataclass(frozen=True)
class Vocabulary:
    """Stands in for a tokeniser: the number of token ids, and the special ones among them.

    It is as large as the run's vocabulary can get: the text of the stream may yield a smaller base vocabulary than was
    asked for, and a pretrained model may have unused rows for the added tokens, or no chat template.
    """

    base: int
    """Entries before the added tokens."""
    tasks: int
    """Task tokens, assigned and spare."""
    eos: int = 0
    fresh: frozenset[int] = frozenset()
    """Rows of the model that are drawn anew: none, since that takes no memory."""
    ends: int = 0
    """1 if the model may have a chat template, with which a token ends every example."""

    @property
    def size(self) -> int:
        """All entries."""
        return self.base + _NUM_ADDED + self.tasks + self.ends

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
    def lm_start(self) -> tuple[int, ...]:
        return ()

    @property
    def lm_end(self) -> tuple[int, ...]:
        return (self.eos,)

    @property
    def task_tokens(self) -> list[int]:
        """Ids of the task tokens."""
        return list(range(self.base + _NUM_ADDED, self.size - self.ends))


def vocabulary_of(experiment: ExperimentConfig) -> Vocabulary:
    """Return the vocabulary that the peers share. Raises ModelError if a named model has no configuration."""
    model = experiment.model
    if model.from_scratch is not None:
        base = model.from_scratch.vocabulary
    else:
        base = int(pretrained_config(str(model.name), model.trust_custom_code).vocab_size)
    ends = int(model.name is not None and model.chat_template == "auto")
    return Vocabulary(base, len(experiment.tasks) + model.spare_task_tokens, ends=ends)


def meta_model(config: ModelConfig, vocabulary: Vocabulary, dropout: float | None = None) -> PreTrainedModel:
    """Build the model of ``learner.models.build_model`` from its configuration alone, without weights.

    Call it inside ``FakeTensorMode``, where it takes no memory. Raises ModelError if a named model has no
    configuration.
    """
    if config.from_scratch is not None:
        return build_model(config, cast(Any, vocabulary), 0)
    name = str(config.name)
    # First on the meta device, not as fake tensors on the CPU: PyTorch cannot move modules of those, as peft does.
    with unset_fake_temporarily(), torch.device("meta"):
        code = located(name, trusted=config.trust_custom_code)
        settings = pretrained_config(name, config.trust_custom_code)
        model = AutoModelForCausalLM.from_config(settings, dtype=config.dtype, **code)
        if dropout is not None:
            set_dropout(model, dropout, name)
        drawn = grow(model, vocabulary.size)
        if config.lora is not None:
            add_adapters(model, config.lora, name, {*drawn, *range(vocabulary.base, vocabulary.size)})
    if config.gradient_checkpointing:
        recompute_activations(model)
    _move_to_cpu(model)
    return model


def _move_to_cpu(model: nn.Module) -> None:
    """Replace every meta tensor by an empty one on the CPU; tensors that were shared stay shared."""
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
    """Return whether the logits are one matrix product of the last hidden states, without looking at any value.

    It compares storages: the head must be given what the base model returned, and the whole model must return what the
    head gave. ``learner.position_logits.logits_are_one_product`` decides the same by comparing values.
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
class ParameterCounts:
    """Numbers of a model's parameters; tied ones count once."""

    total: int
    trainable: int
    largest_block: int
    """Parameters of the largest of the stacked layers."""
    outside_blocks: int
    """Parameters of the embeddings and of everything else outside the stacked layers."""


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of ``model``, exactly."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()), default=nn.ModuleList())
    blocks = [sum(p.numel() for p in block.parameters()) for block in layers]
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return ParameterCounts(total, trainable, max(blocks, default=0), total - sum(blocks))
