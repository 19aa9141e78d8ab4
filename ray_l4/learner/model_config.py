"""The configuration of a model, read without its weights and without importing PyTorch for a model from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_l4.config.model import ModelConfig
from ray_l4.errors import ModelError
from ray_l4.store.checkpoints import ADAPTER_CONFIG
from ray_l4.text.model_location import loading_error, located

_DEFAULT_LENGTH = 1024
"""Tokens, for a model without a limit of its own."""


def pretrained_config(name: str, trusted: bool = False) -> Any:
    """Load the configuration of a model by name or path. Raises ModelError if there is none.

    ``trusted``: let code that comes with the model run (``model.trust_custom_code``).
    """
    if (Path(name) / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"model.name: {name!r} holds adapters, not a model. Merge them into one: ray-l4 merge {name} NEW_FOLDER"
        )
    options = located(name, trusted=trusted)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, **options)
    except Exception as error:  # a damaged config.json, or the model's own code, raises errors of any class
        raise ModelError(f"model.name: no model configuration at {name!r}: {loading_error(error)}") from error


def sequence_limit(model: ModelConfig) -> int:
    """Return the longest sequence, in tokens, that the model of an experiment is given.

    Raises ModelError if there is no such model, or if ``max_length`` exceeds its positions.
    """
    if model.from_scratch is not None:
        return longest_sequence(model.from_scratch.positions, model.max_length)
    return max_length(pretrained_config(str(model.name), model.trust_custom_code), model.max_length)


def max_length(model_config: Any, requested: int | None) -> int:
    """Return the requested sequence length in tokens, or all positions of a model by default.

    Raises ModelError if the model has fewer positions than requested.
    """
    positions = getattr(model_config, "max_position_embeddings", None) or getattr(model_config, "n_positions", None)
    if positions is None:
        return requested or _DEFAULT_LENGTH
    return longest_sequence(int(positions), requested)


def longest_sequence(positions: int, requested: int | None) -> int:
    """Return the requested length, or all positions by default. Raises ModelError if there are fewer positions."""
    if requested is not None and requested > positions:
        raise ModelError(f"max_length: {requested} tokens were requested, but the model has {positions} positions")
    return requested or positions
