"""Low-rank adapters (LoRA, Hu et al. 2021) on a model whose own weights stay as they are. The work is done by peft.

The rows of tokens that the pretrained model has never seen are trained with the adapters: as drawn, they mean nothing.
Both together are all that training moves and that a checkpoint holds.

peft takes more than a CPU-second to import, so the functions that need it import it themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ray_l4.config.model import LoraConfig
from ray_l4.errors import ModelError

if TYPE_CHECKING:
    import peft
    from peft.tuners.lora import LoraModel

_ADAPTER = "default"
_PREFIX = "base_model.model."
"""What peft's files put before the names of the wrapped model."""


def add_adapters(model: PreTrainedModel, config: LoraConfig, name: str, rows: Iterable[int]) -> None:
    """Freeze ``model`` and put adapters into it, in place; what it predicts is the same until they are trained.

    ``name`` is where the model came from, so that a checkpoint can say on what its adapters belong; ``rows`` are ids of
    the tokens whose embeddings are trained, and whose output rows, where those are not the same. Random numbers come
    from torch's generator. Raises ModelError if the model cannot have adapters.
    """
    import peft

    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:  # peft's layer for token rows would leave it out without a word
        raise ModelError(
            f"model.lora: the output layer of {type(model).__name__} has a bias, beside which peft cannot train the "
            "rows of new tokens. Train all weights (no model.lora), or take another model."
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
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=_targets(model, config.targets, layers),
            trainable_token_indices=embeddings,
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        ),
    )


def _targets(model: PreTrainedModel, wanted: list[str] | None, layers: Iterable[str]) -> list[str] | str:
    """The names of the layers to adapt, all of which exist; for some architectures peft has a pattern instead."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL_TARGETS

    kind = model.config.model_type
    targets = wanted or USUAL_TARGETS.get(kind)
    there = f"Layers of this model: {', '.join(sorted({path.rpartition('.')[2] for path in layers}))}."
    if targets is None:
        raise ModelError(f"model.lora.targets: peft knows no usual layers of a {kind!r} model; name some. {there}")
    for target in [] if isinstance(targets, str) else targets:
        if not any(f".{path}".endswith(f".{target}") for path in layers):
            raise ModelError(f"model.lora.targets: a {kind!r} model has no layer {target!r}. {there}")
    return targets


def inject(model: PreTrainedModel, settings: peft.LoraConfig) -> LoraModel:
    """Put the adapters that ``settings`` describe into ``model``, in place; what is returned can fold them in.

    Raises ModelError if they do not belong on this model.
    """
    from peft.tuners.lora import LoraModel

    try:
        return LoraModel(model, settings, _ADAPTER)
    except (ValueError, IndexError) as error:  # no such layer; no such row
        raise ModelError(f"adapters do not fit {type(model).__name__}: {error}") from error


def has_adapters(model: nn.Module) -> bool:
    """Whether ``model`` was given adapters."""
    return _ADAPTER in getattr(model, "peft_config", {})


def adapter_settings(model: PreTrainedModel) -> dict[str, Any]:
    """The contents of ``adapter_config.json``."""
    settings = model.peft_config[_ADAPTER].to_dict() | {"inference_mode": True}
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=sorted))  # peft holds layer names as a set
    return plain


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """All that was trained, under the names of ``adapter_model.safetensors``; tied rows once."""
    import peft

    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {_PREFIX + name: tensor for name, tensor in state.items()}


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put what :func:`adapter_state` gave into a model with the same adapters. Raises ModelError if it does not fit."""
    import peft

    own = adapter_state(model)
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
    """The adapters' configuration in a checkpoint. Raises ModelError if it is damaged or not one of LoRA."""
    import peft

    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder}: adapter_config.json cannot be read: {error!r}") from error
    if not isinstance(settings, peft.LoraConfig) or not settings.base_model_name_or_path:
        raise ModelError(f"{folder}: adapter_config.json does not describe LoRA adapters on a named model")
    return settings
