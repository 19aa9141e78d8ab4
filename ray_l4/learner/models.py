"""Language models in and out of memory: build, load, grow, and turn into bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ray_l4.config.experiment import FromScratch, ModelConfig
from ray_l4.errors import ModelError, PeerError
from ray_l4.text.tokenizer import TaskTokenizer

GPT2_INIT_STD, GPT2_WIDTH = 0.02, 768
"""Weights of a model from scratch are drawn so that a product with a unit vector varies as much as in GPT-2 small: with
0.02 at a width of 100 a model starts so close to zero that it needs half its training to leave."""

_PROBE_LENGTH = 4
_PROBE_SCALE = 1e3
_PROBE_TOLERANCE = 1e-3


def build_model(config: ModelConfig, tokenizer: TaskTokenizer, seed: int) -> PreTrainedModel:
    """The model an experiment asks for, with one row per token of ``tokenizer``.

    All random numbers (the whole model from scratch, or the rows of new tokens) follow from ``seed``.
    Raises ModelError if the model cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.from_scratch is not None:
            model = _from_scratch(config.from_scratch, tokenizer)
        else:
            model = _pretrained(str(config.name), tokenizer.size)
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


def _pretrained(name: str, vocabulary: int) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model.name: cannot load {name!r} as a causal language model: {_first_line(error)} "
            "Give a folder with config.json and model.safetensors, or a hub name that this machine can reach."
        ) from error
    if info["missing_keys"]:  # the library would go on with random numbers in their place
        raise ModelError(
            f"model.name: the weights of {name!r} are not complete: {', '.join(sorted(info['missing_keys'])[:3])} "
            "missing. Copy or download the model again."
        )
    # Only ever grow: some models keep more rows than their tokeniser has tokens. SPEC 3.3: new rows are drawn from
    # N(0, initializer_range), not from the statistics of the old ones, which is today's default of the library.
    if vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model


def max_length(model_config: Any, requested: int | None) -> int:
    """Longest sequence in tokens: what was requested, at most what the model has positions for.

    Raises ModelError if more is requested than the model can hold.
    """
    positions = getattr(model_config, "max_position_embeddings", None) or getattr(model_config, "n_positions", None)
    if positions is None:
        return requested or 1024
    return longest_sequence(int(positions), requested)


def longest_sequence(positions: int, requested: int | None) -> int:
    """What was requested, or all positions. Raises ModelError if more is requested than there are."""
    if requested is not None and requested > positions:
        raise ModelError(f"a length of {requested} tokens was asked for (max_length), but the model has {positions}")
    return requested or positions


def pretrained_config(name: str) -> Any:
    """Configuration of a model by name or path. Raises ModelError if there is none."""
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.name: no model configuration at {name!r}: {_first_line(error)}") from error


def to_bytes(model: nn.Module) -> np.ndarray:
    """All weights in safetensors format as a flat uint8 array; of tied weights the first name is kept."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            seen.add(place)
            kept[name] = tensor.detach().cpu().contiguous()
    return np.frombuffer(safetensors.torch.save(kept, metadata={"format": "pt"}), dtype=np.uint8)


def load_bytes(model: PreTrainedModel, weights: np.ndarray) -> None:
    """Put weights written by :func:`to_bytes` into ``model``. Raises ModelError if they are damaged or do not fit."""
    try:
        state = safetensors.torch.load(weights.tobytes())
        missing, unexpected = model.load_state_dict(state, strict=False)
    except SafetensorError as error:
        raise ModelError(f"weights of {weights.nbytes} bytes are damaged: {_first_line(error)}") from error
    except RuntimeError as error:  # a tensor of another shape; its name stands in the second line
        raise ModelError(f"weights do not fit the model: {str(error).strip().splitlines()[-1].strip()}") from error
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    lost = sorted(set(missing) - tied)
    if lost or unexpected:
        raise ModelError(f"weights do not fit the model: missing {lost[:3]}, unexpected {sorted(unexpected)[:3]}")


def from_description(description: Mapping[str, Any]) -> PreTrainedModel:
    """An untrained model of the architecture in ``description`` (``model.config.to_dict()``)."""
    fields = dict(description)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))


def load_folder(folder: Path) -> tuple[PreTrainedModel, TaskTokenizer]:
    """A checkpoint of a run, or any model folder whose tokeniser has the task tokens.

    Raises ModelError if the folder holds no model or no such tokeniser.
    """
    tokenizer = TaskTokenizer.load(folder)
    return _pretrained(str(folder), tokenizer.size), tokenizer


def arithmetic(config: ModelConfig, device: torch.device) -> torch.autocast:
    """The context in which the model is run: bfloat16 products on float32 weights if the experiment says so.

    Weights in bfloat16 would not move at all at a usual learning rate (2^-8 is the least step near 1), so they are not.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


class PositionLogits(nn.Module):
    """Logits at chosen positions only: (rows, time) tokens and (N,) flat positions -> (N, vocab).

    Of the positions of a batch few bear a loss, and the output matrix is the largest there is; so the hidden states are
    selected first. A model that does more than one matrix product after its last hidden state (scaling, soft-capping)
    is noticed on a probe when it is wrapped, and takes the longer way through its own head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.direct = self._head_is_one_product()

    def forward(self, input_ids_RT: Tensor, positions_N: Tensor) -> Tensor:
        # Padding stands on the right and attention is causal, so no scored position can see it: no mask is needed.
        if self.direct:
            hidden_RTD = self.model.base_model(input_ids=input_ids_RT, use_cache=False).last_hidden_state
            return self.model.get_output_embeddings()(hidden_RTD.flatten(0, 1)[positions_N])
        logits_RTV = self.model(input_ids=input_ids_RT, use_cache=False).logits
        return logits_RTV.flatten(0, 1)[positions_N]

    @torch.no_grad()
    def _head_is_one_product(self) -> bool:
        head = self.model.get_output_embeddings()
        if head is None or self.model.base_model is self.model:
            return False
        was_training = self.model.training
        self.model.eval()
        probe_RT = torch.arange(_PROBE_LENGTH, device=self.model.device).unsqueeze(0)
        # Enlarged, because a soft cap does nothing to the small logits of an untrained model.
        hook = head.register_forward_hook(lambda module, inputs, logits: _PROBE_SCALE * logits)
        whole_TV = self.model(input_ids=probe_RT, use_cache=False).logits[0]
        hook.remove()
        hidden_TD = self.model.base_model(input_ids=probe_RT, use_cache=False).last_hidden_state[0]
        direct_TV = _PROBE_SCALE * head(hidden_TD)
        self.model.train(was_training)
        return torch.allclose(whole_TV.float(), direct_TV.float(), atol=_PROBE_TOLERANCE, rtol=_PROBE_TOLERANCE)


def pick_device(gpus: float) -> torch.device:
    """The device of an actor that was given ``gpus`` GPUs. Raises PeerError if PyTorch sees none."""
    if gpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PeerError(f"{gpus} GPU was reserved for this process, but PyTorch sees none: is it a CUDA build?")
    return torch.device("cuda")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
