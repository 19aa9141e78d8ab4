"""Links: how payloads travel from a student to its readers.

With every link a step is two calls: ``forward`` returns a ticket, which is passed to the ``backward`` of every reader.
Links differ in the content of a ticket: the payload itself, or only where it is and how large.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ray_l4.exchange.codecs import Payload

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Ticket:
    """Stands for one peer's payload of one step in calls and their results."""

    sender: int
    codec: str = "dense"
    num_bytes: int = 0
    """Size of the payload, wherever it is."""
    content: Any = None
    """Understood only by the link that made the ticket."""
    answered: pa.Table | None = None
    """The sender's own answers in the step, for its teachers to predict (``learner.own_answers``)."""


class Link(Protocol):
    """One student's exchange of payloads with its peers."""

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        """Publish a payload to ``readers``. In a step there may be several, each for other readers.

        ``at_once``: send it now, since this student collects nothing in this step.
        """

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        """Return the tickets' payloads on this student's device; valid until the next ``publish``.

        Whatever the student has published in the step is sent by then.
        """

    def traffic(self) -> tuple[int, int]:
        """Return the numbers of bytes sent and received since the last call."""


@dataclass
class Traffic:
    """Counts bytes sent and received."""

    sent: int = 0
    received: int = 0

    def take(self) -> tuple[int, int]:
        """Return the numbers of bytes sent and received since the last call."""
        counted = self.sent, self.received
        self.sent = self.received = 0
        return counted


@dataclass
class ByReference:
    """A link whose tickets hold the payload, in this process or in Ray's object store, written once for all readers.

    Tensors travel as numpy arrays, which other processes read without a copy; pickled tensors take 20 to 40 times as
    long (REFERENCE.md#ray-paths).
    """

    peer: int
    device: torch.device
    _traffic: Traffic = field(default_factory=Traffic)

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        self._traffic.sent += payload.num_bytes if readers else 0
        arrays = {name: to_numpy(tensor) for name, tensor in payload.tensors.items()}
        return Ticket(self.peer, payload.codec, payload.num_bytes, arrays)

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        self._traffic.received += sum(ticket.num_bytes for ticket in tickets)
        return [self._read(ticket) for ticket in tickets]

    def traffic(self) -> tuple[int, int]:
        return self._traffic.take()

    def _read(self, ticket: Ticket) -> Payload:
        host = {name: to_tensor(*own) for name, own in ticket.content.items()}
        return Payload(ticket.codec, {name: own.to(self.device, non_blocking=True) for name, own in host.items()})


def to_numpy(tensor: Tensor) -> tuple[str, np.ndarray]:
    """Return the name of a tensor's type, and its values as an array; bfloat16, which numpy lacks, as int16 bits."""
    host = tensor.detach().cpu().contiguous()
    bits = host.view(torch.int16) if host.dtype == torch.bfloat16 else host
    return dtype_name(tensor.dtype), bits.numpy()


def to_tensor(dtype: str, array: np.ndarray) -> Tensor:
    """Invert ``to_numpy``, without a copy."""
    # Received arrays lie in write-protected shared memory. The warning is moot, because nothing writes to the tensors.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(named_dtype(dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type, such as ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def named_dtype(name: str) -> torch.dtype:
    """Return the type with that name."""
    return getattr(torch, name)


Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> name of its type, and shape."""


def shapes_of(payload: Payload) -> Shapes:
    """Return the types and shapes that a reader needs to allocate memory for a payload."""
    return {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in payload.tensors.items()}
