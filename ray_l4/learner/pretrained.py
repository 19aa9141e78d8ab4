"""Loading pretrained models, and adding rows for new tokens."""

from __future__ import annotations

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ray_l4.errors import ModelError, first_line


def load_pretrained(name: str, where: str, dtype: str = "float32") -> PreTrainedModel:
    """Load a causal language model by hub name or path.

    ``where``: the key or file that names the model, for messages. ``dtype``: type of the weights, whatever it is
    in the file. Raises ModelError if the model cannot be loaded
    completely.
    """
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{where}: cannot load {name!r} as a causal language model: {first_line(error)} "
            "Give a folder with config.json and model.safetensors, or a hub name that this machine can reach."
        ) from error
    if info["missing_keys"]:  # Transformers would use random values instead
        raise ModelError(
            f"{where}: the weights of {name!r} are not complete: {', '.join(sorted(info['missing_keys'])[:3])} "
            "missing. Copy or download the model again."
        )
    return model


def recompute_activations(model: PreTrainedModel) -> None:
    """Let the backward pass compute the activations inside each layer again, with the same dropout.

    Raises ModelError if the architecture cannot do so.
    """
    # Transformers 5 renamed the method; the old name warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False, "preserve_rng_state": True})
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
