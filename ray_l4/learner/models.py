"""Language models: building, loading, and conversion to and from bytes."""

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
from ray_l4.learner.custom_code import code_of
from ray_l4.learner.pretrained import draw_rows, grow, load_pretrained, recompute_activations, with_new_rows
from ray_l4.store.checkpoints import ADAPTER_CONFIG
from ray_l4.store.checksums import damaged_in
from ray_l4.store.records import ADAPTER_WEIGHTS, ADAPTERS, CODE
from ray_l4.store.weight_files import damage
from ray_l4.text.tokenizer import TaskTokenizer

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

GPT2_INIT_STD, GPT2_WIDTH = 0.02, 768
"""Standard deviation of the initial weights of GPT-2 small, and its width. Models from scratch scale the first by the
inverse square root of the width: with 0.02 at a width of 100, half the training is spent on moving away from zero."""


def build_model(
    config: ModelConfig, tokenizer: TaskTokenizer, seed: int, dropout: float | None = None
) -> PreTrainedModel:
    """Build the model that ``config`` describes, with at least one row per token of ``tokenizer``, and adapters if set.

    All random numbers (the whole model from scratch, or the rows of new tokens and the adapters) follow from ``seed``.
    ``dropout`` replaces the dropout of all layers of a pretrained model, but not that of adapters.
    Raises ModelError if the model cannot be loaded, has no dropout to set or cannot recompute activations.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.from_scratch is not None:
            model: PreTrainedModel = _from_scratch(config.from_scratch, tokenizer)
        else:
            model = _pretrained(config, tokenizer, dropout)
    if config.gradient_checkpointing:
        recompute_activations(model)
    return model


def _pretrained(config: ModelConfig, tokenizer: TaskTokenizer, dropout: float | None) -> PreTrainedModel:
    name = str(config.name)
    refuse_damaged(Path(name))
    model = load_pretrained(name, "model.name", config.dtype, config.trust_custom_code)
    if dropout is not None:
        set_dropout(model, dropout, name)
    drawn = grow(model, tokenizer.size)
    draw_rows(model, tokenizer.fresh.difference(drawn))
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
            activation_function="gelu_pytorch_tanh",  # GPT-2's GELU, in one operator
            initializer_range=GPT2_INIT_STD * math.sqrt(GPT2_WIDTH / shape.width),
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            resid_pdrop=shape.dropout,
            bos_token_id=tokenizer.eos,
            eos_token_id=tokenizer.eos,
        )
    )


def set_dropout(model: PreTrainedModel, dropout: float, name: str) -> None:
    """Set the dropout of every layer, wherever the architecture keeps it: in modules, attributes and configuration.

    Raises ModelError, naming the model ``name``, if it has no dropout.
    """
    layers, numbers = _dropouts(model)
    if not layers and not numbers:
        raise ModelError(
            f"peers.each: a dropout of {dropout:g} was requested, but {name!r} has no layer with dropout. Remove "
            "the key; to make such peers differ, use peers.init: own, different seeds, or adapters (model.lora)."
        )
    for layer in layers:
        layer.p = dropout
    for holder, key in [
        *numbers,
        *((model.config, key) for key in vars(model.config) if _is_dropout(model.config, key)),
    ]:
        setattr(holder, key, dropout)


def has_dropout(model: nn.Module) -> bool:
    """Return whether any layer, adapters included, drops something in training."""
    layers, numbers = _dropouts(model)
    return any(layer.p for layer in layers) or any(getattr(holder, key) for holder, key in numbers)


def _dropouts(model: nn.Module) -> tuple[list[nn.Dropout], list[tuple[nn.Module, str]]]:
    """List the layers of dropout, and the modules that keep a rate as an attribute, with its name."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    return layers, [(holder, key) for holder in model.modules() for key in vars(holder) if _is_dropout(holder, key)]


def _is_dropout(holder: object, key: str) -> bool:
    """Return whether an attribute is a dropout rate that applies to a language model.

    Excluded are ``layerdrop``, which drops whole layers, and the rates of heads that a language model does not have.
    """
    value = getattr(holder, key)
    is_rate = isinstance(value, int | float) and not isinstance(value, bool)
    unused = ("summary", "classifier")
    return is_rate and ("dropout" in key or key.endswith("pdrop")) and not key.startswith(unused)


def _added_tokens(tokenizer: TaskTokenizer) -> set[int]:
    """Return the ids that the pretrained model was not trained on, including those for which it has a spare row."""
    return {tokenizer.ans, tokenizer.pad, tokenizer.unk, *tokenizer.lm_end[1:], *tokenizer.task_tokens}


def to_bytes(model: nn.Module) -> np.ndarray:
    """Return all weights in safetensors format as a flat uint8 array; tied weights are stored under their first name.

    For a model with adapters, only the adapters and the rows of new tokens are stored, as peft does.
    """
    return state_bytes(adapter_state(model) if has_adapters(model) else model.state_dict())


def state_bytes(state: Mapping[str, Tensor]) -> np.ndarray:
    """Return named tensors in the format of :func:`to_bytes`; tensors that share memory are stored once."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            seen.add(place)
            kept[name] = tensor.detach().cpu().contiguous()
    return np.frombuffer(safetensors.torch.save(kept, metadata={"format": "pt"}), dtype=np.uint8)


def load_bytes(
    model: PreTrainedModel,
    weights: np.ndarray,
    part_of: Callable[[str, Tensor], Tensor] | None = None,
    seed: int | None = None,
) -> None:
    """Load weights written by :func:`to_bytes` into ``model``. Raises ModelError if they are damaged or do not fit.

    ``part_of``: maps a name and its whole tensor to the part that a sharded ``model`` holds. ``seed``: of the rows of
    tokens that the model has and the weights do not (``with_new_rows``); None: such weights do not fit.
    """
    try:
        state = safetensors.torch.load(weights.tobytes())
    except SafetensorError as error:
        raise ModelError(f"weights of {weights.nbytes} bytes are damaged: {first_line(error)}") from error
    if has_adapters(model):
        load_adapter_state(model, state, seed)
        return
    if seed is not None:
        state = with_new_rows(state, model, seed)
    if part_of is not None:
        state = {name: part_of(name, tensor) for name, tensor in state.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a tensor has another shape; its name is in the last line
        raise ModelError(f"weights do not fit the model: {str(error).strip().splitlines()[-1].strip()}") from error
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    lost = sorted(set(missing) - tied)
    if lost or unexpected:
        raise ModelError(f"weights do not fit the model: missing {lost[:3]}, unexpected {sorted(unexpected)[:3]}")


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """Return the model's configuration as JSON values.

    That of its adapters, if it has any, is under ``ADAPTERS``, and the code that came with it under ``CODE``.
    """
    description: dict[str, Any] = model.config.to_dict()
    if has_adapters(model):
        description[ADAPTERS] = adapter_settings(model)
    elif code := code_of(model):
        # Transformers looks for a file of its own for every class, in the folder of the weights.
        references = {name: str(own).rpartition("--")[2] for name, own in description.get("auto_map", {}).items()}
        known = {name: own for name, own in references.items() if f"{own.partition('.')[0]}.py" in code}
        description |= {"auto_map": known, CODE: code}
    return description


def from_description(description: Mapping[str, Any]) -> PreTrainedModel:
    """Build an untrained model of the architecture in ``description`` (``model.config.to_dict()``)."""
    fields = dict(description)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))


def blank_model(config: ModelConfig, tokenizer: TaskTokenizer, description: Mapping[str, Any]) -> PreTrainedModel:
    """Build a model into which :func:`load_bytes` can load any peer whose :func:`describe` gave ``description``.

    With adapters it has the pretrained weights, which the bytes do not hold. All that is drawn at random is trained and
    hence part of the bytes, so neither the seed nor the peers' initial weights matter. A model with code of its own is
    loaded too: Transformers cannot build it from its description.
    """
    if config.lora is None and not config.trust_custom_code:
        return from_description(description)
    return build_model(config, tokenizer, seed=0)


def same_architecture(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two descriptions are equal but for dropout, which a model that only predicts does not apply."""
    return _undropped(one) == _undropped(other)


def _undropped(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if "drop" not in key}


def load_folder(folder: Path, dtype: str = "float32", trusted: bool = False) -> tuple[PreTrainedModel, TaskTokenizer]:
    """Load a checkpoint of a run, or any model folder whose tokeniser has the task tokens.

    ``dtype``: type of the weights (``ModelConfig.dtype``). ``trusted``: let code that comes with the model run. Raises
    ModelError if the folder holds no model or no such tokeniser, or adapters whose base model is not found.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        tuned, tokenizer = load_adapters(folder, dtype, trusted)
        return tuned.model, tokenizer
    refuse_damaged(folder)
    tokenizer = TaskTokenizer.load(folder)
    model = load_pretrained(str(folder), "model.name", dtype, trusted)
    grow(model, tokenizer.size)
    return model, tokenizer


def refuse_damaged(folder: Path) -> None:
    """Raise ModelError if a file in the folder of a model is not the one of which the folder has the checksum."""
    try:
        damaged = damaged_in(folder)
    except OSError as error:
        damaged = f"{error.filename} cannot be read ({error.strerror})"
    if damaged is not None:
        raise ModelError(f"model.name: {damaged}. Copy the checkpoint again, or take another one.")


def load_adapters(folder: Path, dtype: str = "float32", trusted: bool = False) -> tuple[LoraModel, TaskTokenizer]:
    """Load a checkpoint that holds adapters, with its base model; ``merge_and_unload()`` of the model merges the two.

    ``dtype``: type of the weights (``ModelConfig.dtype``). ``trusted``: let code that comes with the base model run.
    Raises ModelError if the folder is not such a checkpoint, or if the base model is not found.
    """
    refuse_damaged(folder)
    tokenizer = TaskTokenizer.load(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no {name}; expected a checkpoint of a run with adapters (model.lora)")
    settings = read_settings(folder)
    where = f"{folder / ADAPTER_CONFIG}: base_model_name_or_path"
    model = load_pretrained(settings.base_model_name_or_path, where, dtype, trusted)
    grow(model, tokenizer.size)
    tuned = inject(model, settings)
    damaged = damage(folder / ADAPTER_WEIGHTS)
    if damaged is not None:
        raise ModelError(f"{folder / ADAPTER_WEIGHTS} {damaged}. Copy the checkpoint again, or take another one.")
    load_bytes(model, np.fromfile(folder / ADAPTER_WEIGHTS, dtype=np.uint8))
    return tuned, tokenizer


def arithmetic(config: ModelConfig, device: torch.device) -> torch.autocast:
    """Return the autocast context for running the model: bfloat16 arithmetic if the experiment sets it.

    Weights keep their type (``ModelConfig.dtype``), by default float32: in bfloat16, where numbers near 1 are 2^-8
    apart, usual learning rates would not move them.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def pick_device(gpus: float) -> torch.device:
    """Return the device of an actor that has ``gpus`` GPUs. Raises PeerError if it has some but PyTorch sees none."""
    if gpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PeerError(f"GPUs reserved for this process: {gpus:g}, but PyTorch sees none. Is it a CUDA build?")
    return torch.device("cuda")
