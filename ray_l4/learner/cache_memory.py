"""Memory of keys and values: what a token takes, and how much a batch may take."""

from __future__ import annotations

from typing import Any

import torch

_CPU_BYTES = 2**30
_GPU_SHARE = 0.5
"""Of what is free; the rest is for activations."""


def bytes_per_token(model_config: Any, dtype: torch.dtype) -> int:
    """Return the size of a token's keys and values in all layers; 1 for a model whose configuration does not tell."""
    config = model_config.get_text_config(decoder=True)
    try:
        heads = getattr(config, "num_attention_heads", None) or 1
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kept = getattr(config, "num_key_value_heads", None) or heads
        return 2 * int(config.num_hidden_layers) * int(kept) * int(size) * dtype.itemsize
    except (AttributeError, TypeError):  # other names, or lists with an entry for every layer
        return 1


def cache_budget(device: torch.device) -> int:
    """Return the bytes that keys and values of a batch may take on ``device``."""
    if device.type != "cuda":
        return _CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_GPU_SHARE * (free + unused))
