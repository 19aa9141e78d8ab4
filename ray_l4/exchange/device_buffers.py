"""One host, no copy through its memory: peers read each other's device buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from ray_l4.exchange.codecs import Payload
from ray_l4.exchange.links import Ticket, Traffic, dtype_name, named_dtype

_ALIGNMENT = 256
"""Bytes; every tensor begins at a multiple, as in PyTorch's own allocations."""


class Memory(Protocol):
    """Memory that other processes can map."""

    def allocate(self, num_bytes: int) -> tuple[Tensor, Any]:
        """A uint8 tensor of that size, and the handle by which another process opens it: plain data."""

    def open(self, handle: Any) -> Tensor:
        """The tensor behind another process' handle."""

    def settle(self) -> None:
        """Return when all that was written can be read by others."""


class CudaMemory:
    """Device memory by CUDA IPC: peers on one GPU, or on GPUs of one host that reach each other's memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, num_bytes: int) -> tuple[Tensor, Any]:
        tensor = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        _, handle = reduce_tensor(tensor)
        return tensor, handle

    def open(self, handle: Any) -> Tensor:
        return rebuild_cuda_tensor(*handle)

    def settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()


@dataclass
class Pooled:
    """Predictions are written into a buffer of this student's that is made once, and read where they are.

    The buffer has so many slots that none is written again while a reader may still be at it: of one student at most
    ``steps_ahead`` steps are submitted before the oldest one has ended for all (``train_steps``), the present one and
    the next are under way. It is made anew when a step needs more room. A ticket names the buffer, which a reader opens
    the first time it sees it, and the place in it.
    """

    me: int
    device: torch.device
    memory: Memory
    slots: int
    """At least ``steps_ahead`` + 2."""
    _buffer: Tensor | None = None
    _handle: Any = None
    _made: int = 0
    """Buffers that were made so far: the number of the present one."""
    _step: int = 0
    _opened: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    """Sender -> number of its buffer, and the buffer."""
    _replaced: list[tuple[int, Tensor]] = field(default_factory=list)
    """Earlier buffers, which readers may still be at, and the step until which they are kept."""
    _traffic: Traffic = field(default_factory=Traffic)

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        room = sum(_rounded(tensor.nbytes) for tensor in payload.tensors.values())
        buffer = self._buffer_for(room)
        offset = self._step % self.slots * (len(buffer) // self.slots)
        self._step += 1
        parts = {}
        for name, tensor in payload.tensors.items():
            place = buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor)
            parts[name] = offset, dtype_name(tensor.dtype), tuple(tensor.shape)
            offset += _rounded(tensor.nbytes)
        self.memory.settle()
        self._traffic.sent += payload.num_bytes if readers else 0
        return Ticket(self.me, payload.codec, payload.num_bytes, (self._made, self._handle, parts))

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        self._traffic.received += sum(ticket.num_bytes for ticket in tickets)
        return [self._read(ticket) for ticket in tickets]

    def traffic(self) -> tuple[int, int]:
        return self._traffic.take()

    def _buffer_for(self, room: int) -> Tensor:
        """The buffer, with at least ``room`` bytes a slot."""
        self._replaced = [(until, buffer) for until, buffer in self._replaced if until > self._step]
        if self._buffer is None or len(self._buffer) < room * self.slots:
            if self._buffer is not None:
                self._replaced.append((self._step + self.slots, self._buffer))
            self._buffer, self._handle = self.memory.allocate(max(room, _ALIGNMENT) * self.slots)
            self._made += 1
        return self._buffer

    def _read(self, ticket: Ticket) -> Payload:
        number, handle, parts = ticket.content
        if self._opened.get(ticket.sender, (0, None))[0] != number:
            self._opened[ticket.sender] = number, self.memory.open(handle)
        buffer = self._opened[ticket.sender][1]
        read = {}
        for name, (offset, dtype, shape) in parts.items():
            size = math.prod(shape) * named_dtype(dtype).itemsize
            read[name] = buffer[offset : offset + size].view(named_dtype(dtype)).view(shape).to(self.device)
        return Payload(ticket.codec, read)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def cuda_link(me: int, device: torch.device, steps_ahead: int) -> Pooled:
    """The link of a student on a GPU."""
    return Pooled(me, device, CudaMemory(device), steps_ahead + 2)
