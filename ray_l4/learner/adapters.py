"""Low-rank adapters (LoRA, Hu et al. 2021) on a frozen model, implemented with peft.

The embedding rows of tokens that the pretrained model was not trained on are trained together with the adapters.
Training changes nothing else, and a checkpoint holds nothing else.

peft takes more than a CPU-second to import, so the functions that need it import it themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ray_l4.config.model import LoraConfig
from ray_l4.errors import ModelError
from ray_l4.learner.pretrained import grown

if TYPE_CHECKING:
    import peft
    from peft.tuners.lora import LoraModel

_ADAPTER = "default"
TOKEN_ROWS = "trainable_tokens"
"""Part of the names of tensors that hold the rows of new tokens, in the order of the tokens."""
INPUT_SIDE, OUTPUT_SIDE = "lora_A", "lora_B"
"""Parts of the names of adapters' matrices: A of shape (rank, inputs) and B of shape (outputs, rank)."""
_PREFIX = "base_model.model."
"""Prefix of the wrapped model's parameter names in peft's files."""


def add_adapters(model: PreTrainedModel, config: LoraConfig, name: str, rows: Iterable[int]) -> None:
    """Freeze ``model`` and add adapters to it, in place; its predictions do not change until they are trained.

    ``name``: hub name or path of the base model, for checkpoints. ``rows``: ids of the tokens whose embeddings are
    trained, and also their output rows unless tied. Random numbers come from torch's global generator. Raises
    ModelError if adapters cannot be added to the model.
    """
    import peft

    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:  # peft's layer for token rows would silently drop it
        raise ModelError(
            f"model.lora: the output layer of {type(model).__name__} has a bias, with which peft cannot train the "
            "rows of new tokens. Train all weights (no model.lora), or use another model."
        )
    names = {module: path for path, module in model.named_modules()}
    embeddings = {names[model.get_input_embeddings()]: sorted(rows)}
    if head.weight is not model.get_input_embeddings().weight:
        embeddings[names[head]] = sorted(rows)
    layers = {
        path: module for module, path in names.items() if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    inject(
        model,
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(Path(name).absolute()) if Path(name).is_dir() else name,
            r=config.rank * (config.subspaces or 1),
            lora_alpha=config.alpha * (config.subspaces or 1),  # the scale stays alpha / rank
            lora_dropout=config.dropout,
            target_modules=_targets(model, config.targets, layers),
            trainable_token_indices=embeddings,
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        ),
    )


def _targets(model: PreTrainedModel, wanted: list[str] | None, layers: Iterable[str]) -> list[str] | str:
    """Return the layers to adapt, as names or peft's pattern. Raises ModelError if one of them does not exist."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL_TARGETS

    kind = model.config.model_type
    targets = wanted or USUAL_TARGETS.get(kind)
    known = f"Layers of this model: {', '.join(sorted({path.rpartition('.')[2] for path in layers}))}."
    if targets is None:
        raise ModelError(f"model.lora.targets: peft has no default layers for a {kind!r} model; name some. {known}")
    for target in [] if isinstance(targets, str) else targets:
        if not any(f".{path}".endswith(f".{target}") for path in layers):
            raise ModelError(f"model.lora.targets: a {kind!r} model has no layer {target!r}. {known}")
    return targets


def inject(model: PreTrainedModel, settings: peft.LoraConfig) -> LoraModel:
    """Add the adapters that ``settings`` describe to ``model``, in place; the returned model can merge them.

    Raises ModelError if they do not fit the model.
    """
    from peft.tuners.lora import LoraModel
    from peft.tuners.tuners_utils import cast_adapter_dtype

    try:
        tuned = LoraModel(model, settings, _ADAPTER)
        cast_adapter_dtype(model, _ADAPTER)  # to float32, beside weights of any type
        return tuned
    except (ValueError, IndexError) as error:  # no such layer; no such row
        raise ModelError(f"adapters do not fit {type(model).__name__}: {error}") from error


def has_adapters(model: nn.Module) -> bool:
    """Return whether ``model`` has adapters."""
    return _ADAPTER in getattr(model, "peft_config", {})


@contextmanager
def token_rows_merged(model: nn.Module) -> Iterator[None]:
    """Build the embeddings with the trained rows of new tokens once, and not at every call of ``model``.

    For decoding, where this copy of the whole embedding takes a good part of a small model's time
    (docs/PERFORMANCE.md). Weights and predictions stay the same, bit for bit; the rows must not change meanwhile.
    """
    merged = list(_merged_rows(model)) if has_adapters(model) else []
    try:
        for layer, weights in merged:
            vars(layer)["get_merged_weights"] = lambda _adapters, weights=weights: weights
        yield
    finally:
        for layer, _ in merged:
            vars(layer).pop("get_merged_weights", None)


def _merged_rows(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer):
            yield layer, layer.get_merged_weights(layer.active_adapters)


def adapter_settings(model: PreTrainedModel) -> dict[str, Any]:
    """Return the contents of ``adapter_config.json``."""
    settings = model.peft_config[_ADAPTER].to_dict() | {"inference_mode": True}
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=sorted))  # peft holds layer names as a set
    return plain


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return all trained tensors with their names in ``adapter_model.safetensors``; tied rows appear once."""
    import peft

    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {_PREFIX + name: tensor for name, tensor in state.items()}


def load_adapter_state(model: PreTrainedModel, state: Mapping[str, Tensor], seed: int | None = None) -> None:
    """Load what :func:`adapter_state` returned. Raises ModelError if it does not fit the adapters of ``model``.

    ``seed``: of the rows of tokens that only ``model`` has (``pretrained.grown``); None: it must not have any.
    """
    import peft

    own = adapter_state(model)
    if seed is not None:
        state = {
            name: grown(tensor, own[name].shape, model, seed) if name in own and TOKEN_ROWS in name else tensor
            for name, tensor in state.items()
        }
    lost, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if lost or unexpected:
        raise ModelError(f"weights do not fit the adapters: missing {lost[:3]}, unexpected {unexpected[:3]}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ModelError(
                f"weights do not fit the adapters: size mismatch for {name}: {tuple(state[name].shape)}, expected "
                f"{tuple(tensor.shape)}"
            )
    peft.set_peft_model_state_dict(model, {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()})


def read_settings(folder: Path) -> peft.LoraConfig:
    """Read the adapters' configuration from a checkpoint. Raises ModelError if it is damaged or not one of LoRA."""
    import peft

    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder}: adapter_config.json cannot be read: {error!r}") from error
    if not isinstance(settings, peft.LoraConfig) or not settings.base_model_name_or_path:
        raise ModelError(f"{folder}: adapter_config.json does not describe LoRA adapters on a named model")
    return settings
