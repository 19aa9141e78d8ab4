"""Language models in and out of memory: build, load, grow, and turn into bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from ray_l4.config.model import FromScratch, ModelConfig
from ray_l4.errors import ModelError, PeerError, first_line
from ray_l4.learner.adapters import (
    adapter_settings,
    adapter_state,
    add_adapters,
    has_adapters,
    inject,
    load_adapter_state,
    read_settings,
)
from ray_l4.learner.pretrained import grow, load_pretrained
from ray_l4.store.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTERS
from ray_l4.text.tokenizer import TaskTokenizer

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

GPT2_INIT_STD, GPT2_WIDTH = 0.02, 768
"""Weights of a model from scratch are drawn so that a product with a unit vector varies as much as in GPT-2 small: with
0.02 at a width of 100 a model starts so close to zero that it needs half its training to leave."""


def build_model(
    config: ModelConfig, tokenizer: TaskTokenizer, seed: int, dropout: float | None = None
) -> PreTrainedModel:
    """The model an experiment asks for, with one row per token of ``tokenizer``, and adapters if it asks for them.

    All random numbers (the whole model from scratch, or the rows of new tokens and the adapters) follow from ``seed``.
    ``dropout``: of all layers of a pretrained model, in place of its own; adapters keep theirs.
    Raises ModelError if the model cannot be loaded, or has no dropout that could be set.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.from_scratch is not None:
            return _from_scratch(config.from_scratch, tokenizer)
        name = str(config.name)
        model = load_pretrained(name, "model.name")
        if dropout is not None:
            set_dropout(model, dropout, name)
        drawn = grow(model, tokenizer.size)
        if config.lora is not None:
            add_adapters(model, config.lora, name, {*drawn, *_added_tokens(tokenizer)})
        return model


def _from_scratch(shape: FromScratch, tokenizer: TaskTokenizer) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer.size,
            n_positions=shape.positions,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            initializer_range=GPT2_INIT_STD * math.sqrt(GPT2_WIDTH / shape.width),
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            resid_pdrop=shape.dropout,
            bos_token_id=tokenizer.eos,
            eos_token_id=tokenizer.eos,
        )
    )


def set_dropout(model: PreTrainedModel, dropout: float, name: str) -> None:
    """Give every layer this dropout, wherever the architecture keeps it: in modules, in attributes, in its config.

    Raises ModelError if there is no such place in ``model``, which ``name`` names.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    numbers = [(holder, key) for holder in model.modules() for key in vars(holder) if _is_dropout(holder, key)]
    if not layers and not numbers:
        raise ModelError(
            f"peers.each: a dropout of {dropout:g} was asked for, but {name!r} has no layer with dropout. Leave the "
            "key out; to tell such peers apart, use peers.init: own, another seed, or adapters (model.lora)."
        )
    for layer in layers:
        layer.p = dropout
    for holder, key in [
        *numbers,
        *((model.config, key) for key in vars(model.config) if _is_dropout(model.config, key)),
    ]:
        setattr(holder, key, dropout)


def _is_dropout(holder: object, key: str) -> bool:
    """Not ``layerdrop``, which leaves out whole layers, and not that of heads that a language model does not use."""
    value = getattr(holder, key)
    is_rate = isinstance(value, int | float) and not isinstance(value, bool)
    unused = ("summary", "classifier")
    return is_rate and ("dropout" in key or key.endswith("pdrop")) and not key.startswith(unused)


def _added_tokens(tokenizer: TaskTokenizer) -> set[int]:
    """Ids that mean nothing to the pretrained model, also where it has a spare row for them."""
    return {tokenizer.ans, tokenizer.pad, tokenizer.unk, *tokenizer.task_tokens}


def to_bytes(model: nn.Module) -> np.ndarray:
    """All weights in safetensors format as a flat uint8 array; of tied weights the first name is kept.

    Of a model with adapters these are the adapters and the rows of new tokens alone, as peft stores them.
    """
    return state_bytes(adapter_state(model) if has_adapters(model) else model.state_dict())


def state_bytes(state: Mapping[str, Tensor]) -> np.ndarray:
    """Named tensors in the form of :func:`to_bytes`; of those that share their memory the first is kept."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            seen.add(place)
            kept[name] = tensor.detach().cpu().contiguous()
    return np.frombuffer(safetensors.torch.save(kept, metadata={"format": "pt"}), dtype=np.uint8)


def load_bytes(
    model: PreTrainedModel, weights: np.ndarray, part_of: Callable[[str, Tensor], Tensor] | None = None
) -> None:
    """Put weights written by :func:`to_bytes` into ``model``. Raises ModelError if they are damaged or do not fit.

    ``part_of``: gives what ``model`` holds of a whole tensor of that name, where that is not all of it.
    """
    try:
        state = safetensors.torch.load(weights.tobytes())
    except SafetensorError as error:
        raise ModelError(f"weights of {weights.nbytes} bytes are damaged: {first_line(error)}") from error
    if has_adapters(model):
        load_adapter_state(model, state)
        return
    if part_of is not None:
        state = {name: part_of(name, tensor) for name, tensor in state.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a tensor of another shape; its name stands in the second line
        raise ModelError(f"weights do not fit the model: {str(error).strip().splitlines()[-1].strip()}") from error
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    lost = sorted(set(missing) - tied)
    if lost or unexpected:
        raise ModelError(f"weights do not fit the model: missing {lost[:3]}, unexpected {sorted(unexpected)[:3]}")


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """The model's configuration, with that of its adapters, if it has any, under ``ADAPTERS``: JSON values only."""
    description: dict[str, Any] = model.config.to_dict()
    return description | ({ADAPTERS: adapter_settings(model)} if has_adapters(model) else {})


def from_description(description: Mapping[str, Any]) -> PreTrainedModel:
    """An untrained model of the architecture in ``description`` (``model.config.to_dict()``)."""
    fields = dict(description)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))


def blank_model(config: ModelConfig, tokenizer: TaskTokenizer, description: Mapping[str, Any]) -> PreTrainedModel:
    """A model that :func:`load_bytes` turns into any peer of the run, ``description`` being :func:`describe` of one.

    With adapters it stands on the pretrained weights, which bytes do not hold. Whatever is drawn at random there is
    trained and hence in the bytes, so that the seed does not matter, nor whether peers started from the same one.
    """
    return from_description(description) if config.lora is None else build_model(config, tokenizer, seed=0)


def same_architecture(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions differ in dropout at most, which a model that only predicts does not have."""
    return _undropped(one) == _undropped(other)


def _undropped(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if "drop" not in key}


def load_folder(folder: Path) -> tuple[PreTrainedModel, TaskTokenizer]:
    """A checkpoint of a run, or any model folder whose tokeniser has the task tokens.

    Raises ModelError if the folder holds no model or no such tokeniser, or adapters whose model is not to be found.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        tuned, tokenizer = load_adapters(folder)
        return tuned.model, tokenizer
    tokenizer = TaskTokenizer.load(folder)
    model = load_pretrained(str(folder), "model.name")
    grow(model, tokenizer.size)
    return model, tokenizer


def load_adapters(folder: Path) -> tuple[LoraModel, TaskTokenizer]:
    """A checkpoint that holds adapters, on its model. ``merge_and_unload()`` of the first gives one without adapters.

    Raises ModelError if the folder is no such checkpoint, or if its model is not to be found.
    """
    tokenizer = TaskTokenizer.load(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no {name}; expected a checkpoint of a run with adapters (model.lora)")
    settings = read_settings(folder)
    model = load_pretrained(settings.base_model_name_or_path, f"{folder / ADAPTER_CONFIG}: base_model_name_or_path")
    grow(model, tokenizer.size)
    tuned = inject(model, settings)
    load_bytes(model, np.fromfile(folder / ADAPTER_WEIGHTS, dtype=np.uint8))
    return tuned, tokenizer


def arithmetic(config: ModelConfig, device: torch.device) -> torch.autocast:
    """The context in which the model is run: bfloat16 products on float32 weights if the experiment says so.

    Weights in bfloat16 would not move at all at a usual learning rate (2^-8 is the least step near 1), so they are not.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def pick_device(gpus: float) -> torch.device:
    """The device of an actor that was given ``gpus`` GPUs. Raises PeerError if PyTorch sees none."""
    if gpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PeerError(f"{gpus} GPU was reserved for this process, but PyTorch sees none: is it a CUDA build?")
    return torch.device("cuda")
