"""What is sent: a peer's predictions as plain arrays, and back.

A codec is two pure functions. ``encode`` turns log-probabilities into read-only-safe numpy arrays (numpy crosses a
process border without a copy; a pickled tensor takes 20 to 40 times as long). ``decode`` gives log-probabilities that
sum to one over the vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Payload = Mapping[str, np.ndarray]
"""Head -> what is sent for its positions."""


class Codec(Protocol):
    """How predictions are written for the way."""

    def encode(self, predictions: Mapping[str, Tensor]) -> dict[str, np.ndarray]: ...

    def decode(self, payload: Payload, device: torch.device) -> dict[str, Tensor]: ...


class DenseFloat32:
    """Log-probabilities (K, vocab) as they are: 4 bytes an entry, exact."""

    def encode(self, predictions: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return {head: log_probs_KV.cpu().numpy() for head, log_probs_KV in predictions.items()}

    def decode(self, payload: Payload, device: torch.device) -> dict[str, Tensor]:
        return {head: _tensor(array_KV).to(device) for head, array_KV in payload.items()}


class DenseFloat16:
    """Log-probabilities relative to the row's largest, in float16: 2 bytes an entry.

    Narrowing is safe only after centring: what matters lies near the maximum, where float16 is finest. The receiver
    normalises again.
    """

    def encode(self, predictions: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return {
            head: (log_probs_KV - log_probs_KV.amax(dim=-1, keepdim=True)).half().cpu().numpy()
            for head, log_probs_KV in predictions.items()
        }

    def decode(self, payload: Payload, device: torch.device) -> dict[str, Tensor]:
        return {
            head: torch.log_softmax(_tensor(array_KV).to(device).float(), dim=-1) for head, array_KV in payload.items()
        }


CODECS: Mapping[tuple[str, str], Codec] = {
    ("dense", "float32"): DenseFloat32(),
    ("dense", "float16"): DenseFloat16(),
}


def num_bytes(payload: Payload) -> int:
    """Bytes on the way for one peer's predictions of one step."""
    return sum(array.nbytes for array in payload.values())


def _tensor(array: np.ndarray) -> Tensor:
    # What arrives lies in shared memory and is write-protected; nobody here writes to it, as the warning asks.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
