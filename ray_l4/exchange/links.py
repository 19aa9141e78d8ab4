"""How predictions get from a student to those who learn from it.

Whatever the link, a step is two calls. ``forward`` returns a ticket, which Ray hands to the ``backward`` of every
reader; what differs is whether the ticket holds the predictions themselves, or only says where they are and how large.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ray_l4.exchange.codecs import Payload


@dataclass(frozen=True)
class Ticket:
    """What the object store carries of one peer's predictions of one step."""

    sender: int
    codec: str = "dense"
    num_bytes: int = 0
    """Of the predictions, wherever they are."""
    content: Any = None
    """Known to the link alone."""


class Link(Protocol):
    """One student's way to its peers."""

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        """Offer predictions to ``readers``. ``at_once``: no ``collect`` of this student belongs to this step."""

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        """What the tickets stand for, on this student's device, to be read only until the next ``publish``."""

    def traffic(self) -> tuple[int, int]:
        """Bytes that this student has sent, and received, since it was last asked."""


@dataclass
class Traffic:
    """Counts bytes."""

    sent: int = 0
    received: int = 0

    def take(self) -> tuple[int, int]:
        """What was counted since the last time."""
        counted = self.sent, self.received
        self.sent = self.received = 0
        return counted


@dataclass
class ByReference:
    """The ticket holds the predictions: an object in this process, or in Ray's store, written once for all readers.

    Tensors travel as numpy arrays, which cross a process border without a copy; a pickled tensor takes 20 to 40 times
    as long.
    """

    me: int
    device: torch.device
    _traffic: Traffic = field(default_factory=Traffic)

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        self._traffic.sent += payload.num_bytes if readers else 0
        arrays = {name: to_numpy(tensor) for name, tensor in payload.tensors.items()}
        return Ticket(self.me, payload.codec, payload.num_bytes, arrays)

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        self._traffic.received += sum(ticket.num_bytes for ticket in tickets)
        return [self._read(ticket) for ticket in tickets]

    def traffic(self) -> tuple[int, int]:
        return self._traffic.take()

    def _read(self, ticket: Ticket) -> Payload:
        return Payload(ticket.codec, {name: to_tensor(*own).to(self.device) for name, own in ticket.content.items()})


def to_numpy(tensor: Tensor) -> tuple[str, np.ndarray]:
    """A tensor's type and its values as an array; numpy has no bfloat16, so those travel as what they are in bits."""
    host = tensor.detach().cpu().contiguous()
    bits = host.view(torch.int16) if host.dtype == torch.bfloat16 else host
    return dtype_name(tensor.dtype), bits.numpy()


def to_tensor(dtype: str, array: np.ndarray) -> Tensor:
    """The tensor that ``to_numpy`` was given, without a copy."""
    # What arrives lies in shared memory and is write-protected; nobody here writes to it, as the warning asks.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(named_dtype(dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``: what both sides of a link understand."""
    return str(dtype).removeprefix("torch.")


def named_dtype(name: str) -> torch.dtype:
    """The type of that name."""
    return getattr(torch, name)


Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor -> its type and shape."""


def shapes_of(payload: Payload) -> Shapes:
    """What a reader has to know to make room for a payload."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in payload.tensors.items()}
