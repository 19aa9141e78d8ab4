"""What is sent for one peer's predictions of one step, and what a codec is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import Targets


@dataclass(frozen=True)
class Payload:
    """Named tensors. They belong to whoever holds the payload, share no memory with a model, and are never written."""

    codec: str = "dense"
    """Name of the codec that wrote it and can read it."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes on the way."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def of_heads(payload: Payload, *names: str) -> dict[str, list[Tensor]]:
    """Head -> its tensors of these names, in this order, of a codec that calls them ``<head>/<name>``."""
    ending = f"/{names[0]}"
    heads = [name.removesuffix(ending) for name in payload.tensors if name.endswith(ending)]
    return {head: [payload.tensors[f"{head}/{name}"] for name in names] for head in heads}


class Codec(Protocol):
    """How predictions are written for the way, and read as targets."""

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        """What is sent. ``seed``: of anything drawn at random, different for every peer, stage and step."""

    def decode(self, payload: Payload) -> dict[str, Targets]:
        """Head -> what a student learns from, on the device the tensors are on."""
