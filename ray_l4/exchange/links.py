"""Links: how payloads get from a student to its readers.

Whatever the link, a step is two calls. ``forward`` returns a ticket, which the ``backward`` of every reader is given.
Links differ in what a ticket holds: the payload itself, or only where it is and how large.
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
    """What a call returns of one peer's predictions of one step."""

    sender: int
    codec: str = "dense"
    num_bytes: int = 0
    """Size of the payload, wherever it is."""
    content: Any = None
    """Only the link knows what it is."""


class Link(Protocol):
    """How one student exchanges payloads with its peers."""

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        """Publish a payload to ``readers``. ``at_once``: this student collects nothing in this step."""

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        """Return the tickets' payloads on this student's device; they are valid until the next ``publish``."""

    def traffic(self) -> tuple[int, int]:
        """Return the bytes sent and received since the last call."""


@dataclass
class Traffic:
    """Counts bytes."""

    sent: int = 0
    received: int = 0

    def take(self) -> tuple[int, int]:
        """Return the bytes counted since the last call."""
        counted = self.sent, self.received
        self.sent = self.received = 0
        return counted


@dataclass
class ByReference:
    """The ticket holds the payload: an object of this process, or of Ray's object store, written once for all readers.

    Tensors travel as numpy arrays, which other processes read without a copy; a pickled tensor takes 20 to 40 times as
    long (REFERENCE.md#ray-paths).
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
    """Return a tensor's type and its values as an array; bfloat16, which numpy lacks, travels as its bits."""
    host = tensor.detach().cpu().contiguous()
    bits = host.view(torch.int16) if host.dtype == torch.bfloat16 else host
    return dtype_name(tensor.dtype), bits.numpy()


def to_tensor(dtype: str, array: np.ndarray) -> Tensor:
    """Return the tensor that ``to_numpy`` was given, without a copy."""
    # What arrives lies in write-protected shared memory. Nothing here writes to it, which is what the warning asks.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(named_dtype(dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``: what both sides of a link understand."""
    return str(dtype).removeprefix("torch.")


def named_dtype(name: str) -> torch.dtype:
    """Return the type of that name."""
    return getattr(torch, name)


Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor -> its type and shape."""


def shapes_of(payload: Payload) -> Shapes:
    """Return what a reader needs to allocate room for a payload."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in payload.tensors.items()}
