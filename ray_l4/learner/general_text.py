"""The loss of a model on general text that it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ray_l4.losses.chunked import row_chunks
from ray_l4.losses.nll import at_least_float32

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel


@torch.no_grad()
def window_losses(model: PreTrainedModel, windows: Sequence[np.ndarray]) -> list[float]:
    """Return the negative log-likelihood of every window (token ids), in nats, without dropout.

    It is the sum over all tokens but the first, each given those before it in its window. One window runs at a time.
    Source: REFERENCE.md#perplexity.
    """
    was_training = model.training
    model.eval()
    losses = [_loss(model, torch.from_numpy(ids).long().to(model.device)) for ids in windows]
    model.train(was_training)
    return losses


def _loss(model: PreTrainedModel, ids_T: Tensor) -> float:
    logits_NV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
    targets_N = ids_T[1:]
    parts = [
        functional.cross_entropy(at_least_float32(logits_NV[rows]), targets_N[rows], reduction="sum").double()
        for rows in row_chunks(*logits_NV.shape)
    ]
    return float(torch.stack(parts).sum())
