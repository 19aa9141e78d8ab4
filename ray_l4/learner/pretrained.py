"""Loading pretrained models, and adding or drawing rows for new tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ray_l4.errors import ModelError, first_line
from ray_l4.learner.causality import refuse_if_not_causal
from ray_l4.seeds import derive
from ray_l4.store.weight_files import damaged_file
from ray_l4.text.model_location import loading_error, located

_INITIALIZER_RANGE = 0.02
"""Standard deviation of new rows where a model's configuration names none."""
Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def load_pretrained(name: str, where: str, dtype: str = "float32", trusted: bool = False) -> PreTrainedModel:
    """Load a causal language model by hub name or path.

    ``where``: the key or file that names the model, for messages. ``dtype``: type of the weights, whatever it is in the
    file. ``trusted``: let code that comes with the model run (``model.trust_custom_code``). Raises ModelError if the
    model cannot be found or not loaded completely, or is not causal.
    """
    transformers_logging.disable_progress_bar()
    options = located(name, where, trusted)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, weights_only=True, **options
        )
    except Exception as error:  # a damaged config.json makes the libraries raise errors of any class
        damaged = damaged_file(Path(name))
        if damaged is not None:
            raise ModelError(f"{where}: cannot load {name!r}: {damaged}. Copy or download it again.") from error
        raise ModelError(
            f"{where}: cannot load {name!r} as a causal language model: {loading_error(error)} "
            "Give a folder with config.json and model.safetensors, or a hub name that this machine can reach."
        ) from error
    if info["missing_keys"]:  # Transformers would use random values instead
        raise ModelError(
            f"{where}: the weights of {name!r} are not complete: {', '.join(sorted(info['missing_keys'])[:3])} "
            "missing. Copy or download the model again."
        )
    try:
        refuse_if_not_causal(model, name, where)
    except (TypeError, ValueError, AttributeError, IndexError) as error:  # settings that show only in a forward pass
        raise ModelError(
            f"{where}: {name!r} cannot be computed: {first_line(error)}. Its config.json is damaged; copy it again."
        ) from error
    return model


def recompute_activations(model: PreTrainedModel, contexts: Contexts | None = None) -> None:
    """Let the backward pass compute the activations inside each layer again, with the same dropout.

    ``contexts`` returns the contexts of the forward pass of a layer and of its repetition. Raises ModelError if the
    architecture cannot do so.
    """
    # Transformers 5 renamed the method; the old name warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False, "preserve_rng_state": True} | ({"context_fn": contexts} if contexts else {}))
    except ValueError as error:
        raise ModelError(
            f"model.gradient_checkpointing: {type(model).__name__} does not support it ({first_line(error)}). "
            "Remove the key, or make memory smaller with students.micro_batch."
        ) from error


def grow(model: PreTrainedModel, vocabulary: int) -> range:
    """Extend the embeddings of ``model`` to at least ``vocabulary`` rows; returns the range of the new rows.

    Rows are never removed: some models have more rows than their tokeniser has tokens. New rows are drawn from
    N(0, initializer_range), not from the statistics of the old rows as Transformers does by default. Source:
    REFERENCE.md#embedding-growth.
    """
    rows = model.get_input_embeddings().num_embeddings
    if vocabulary > rows:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return range(rows, vocabulary)


@torch.no_grad()
def draw_rows(model: PreTrainedModel, ids: Collection[int]) -> None:
    """Draw the embedding rows of ``ids`` anew, and their output rows unless tied, from N(0, initializer_range).

    For tokens that take a row which the model has to spare: what stands there was never trained.
    """
    if not ids:
        return
    rows, spread = torch.tensor(sorted(ids)), _spread(model)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    matrices = [embedding] if head is None or head.weight is embedding else [embedding, head.weight]
    for matrix in matrices:
        matrix[rows] = torch.empty_like(matrix[rows]).normal_(std=spread)


def with_new_rows(state: Mapping[str, Tensor], model: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    """Return the weights of a model with fewer tokens than ``model``, with rows for its new tokens at the end.

    Such weights are those of a stage before the run was extended by more tasks than it had spare tokens for. Row i is
    drawn from N(0, initializer_range) with a generator of its own, so it does not depend on how often the vocabulary
    grew; biases are 0. Source: REFERENCE.md#embedding-growth.
    """
    by_token = [
        module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
    ]
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if _is_by_token(name, model, by_token)}
    return {name: grown(tensor, own[name], model, seed) if name in own else tensor for name, tensor in state.items()}


def grown(known: Tensor, shape: Sequence[int], model: PreTrainedModel, seed: int) -> Tensor:
    """Return ``known`` with new rows at its end, as many as ``shape`` has more; as it is if they differ otherwise."""
    if known.ndim != len(shape) or known.shape[1:] != tuple(shape[1:]) or len(known) >= shape[0]:
        return known
    return torch.cat([known, _new_rows(known, range(len(known), shape[0]), _spread(model), seed)])


def _is_by_token(name: str, model: PreTrainedModel, modules: Collection[nn.Module]) -> bool:
    """Return whether a weight or bias belongs to one of ``modules``, whose rows stand for tokens."""
    return any(model.get_submodule(name.rpartition(".")[0]) is module for module in modules)


def _new_rows(known: Tensor, rows: range, spread: float, seed: int) -> Tensor:
    new = torch.zeros(len(rows), *known.shape[1:], dtype=torch.float32)
    for place, row in enumerate(rows) if known.ndim > 1 else ():
        new[place].normal_(std=spread, generator=torch.Generator().manual_seed(derive(seed, "row", row)))
    return new.to(known.dtype)


def _spread(model: PreTrainedModel) -> float:
    """Return the standard deviation of new rows."""
    spread: float = getattr(model.config.get_text_config(), "initializer_range", None) or _INITIALIZER_RANGE
    return spread
