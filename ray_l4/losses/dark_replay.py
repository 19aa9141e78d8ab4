"""Distance from logits that were recorded earlier: the first term of DER++ (REFERENCE.md#der)."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_l4.losses.nll import at_least_float32


def recorded_distance(logits_NV: Tensor, ids_NK: Tensor, values_NK: Tensor) -> Tensor:
    """Return the mean over all recorded entries of the squared difference of logit and recorded value, a scalar.

    Args:
        logits_NV: the model's logits at N positions.
        ids_NK: int64 ids of the recorded entries of each position.
        values_NK: their values; NaN marks an entry that was not recorded and does not count.
    """
    recorded_NK = ~values_NK.isnan()
    expected_NK = torch.where(recorded_NK, values_NK, 0.0)
    difference_NK = (at_least_float32(logits_NV.gather(1, ids_NK)) - expected_NK) * recorded_NK
    return difference_NK.square().sum() / recorded_NK.sum()
