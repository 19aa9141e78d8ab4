"""Payloads, the encoded predictions of one peer for one step, and the interface of codecs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import Targets


@dataclass(frozen=True)
class Payload:
    """Named tensors. They share no memory with a model and are never written to."""

    codec: str = "dense"
    """Name of the codec that encoded it and can decode it."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def tensors_by_head(payload: Payload, *names: str) -> dict[str, list[Tensor]]:
    """Return head -> its tensors with these names, in this order; they are stored as ``<head>/<name>``."""
    ending = f"/{names[0]}"
    heads = [name.removesuffix(ending) for name in payload.tensors if name.endswith(ending)]
    return {head: [payload.tensors[f"{head}/{name}"] for name in names] for head in heads}


class Codec(Protocol):
    """Encodes predictions as payloads, and decodes payloads as targets."""

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        """Encode predictions. ``seed``: for random draws; it differs between peers, stages and steps."""

    def decode(self, payload: Payload) -> dict[str, Targets]:
        """Decode a payload; returns head -> targets, on the device of its tensors."""
