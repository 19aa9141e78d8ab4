"""Pretrained models, whole or not at all, and with rows for new tokens."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ray_l4.errors import ModelError, first_line


def load_pretrained(name: str, where: str) -> PreTrainedModel:
    """A causal language model by name or path, in float32; ``where`` says in a message what named it.

    Raises ModelError if it cannot be loaded, or only in part.
    """
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{where}: cannot load {name!r} as a causal language model: {first_line(error)} "
            "Give a folder with config.json and model.safetensors, or a hub name that this machine can reach."
        ) from error
    if info["missing_keys"]:  # the library would go on with random numbers in their place
        raise ModelError(
            f"{where}: the weights of {name!r} are not complete: {', '.join(sorted(info['missing_keys'])[:3])} "
            "missing. Copy or download the model again."
        )
    return model


def grow(model: PreTrainedModel, vocabulary: int) -> range:
    """Give ``model`` at least ``vocabulary`` rows; the rows that were drawn for it.

    Only ever more: some models keep more rows than their tokeniser has tokens. REFERENCE.md#embedding-growth: new rows are drawn from
    N(0, initializer_range), not from the statistics of the old ones, which is today's default of the library.
    """
    rows = model.get_input_embeddings().num_embeddings
    if vocabulary > rows:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return range(rows, vocabulary)
