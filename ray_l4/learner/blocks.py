"""The transformer blocks of a model, and their compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from ray_l4.errors import ModelError
from ray_l4.learner.packed_attention import NAME, packed_attention


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """List the layers that Transformers never splits over devices; empty if the architecture does not name them."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


@contextmanager
def compiled_later(model: PreTrainedModel) -> Iterator[None]:
    """Let PyTorch compile every block of ``model`` when it first runs after this context.

    One compilation serves all lengths of sequences. Attention is left out: it has another shape for every group of
    sequences. Raises ModelError if the architecture does not name its blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ModelError(f"model.compile: {type(model).__name__} does not name its blocks. Remove the key.")
    AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
    for block in blocks:
        block.compile(dynamic=True)
    with torch.compiler.set_stance("force_eager"):
        yield
