"""A link within one host that copies nothing through its memory: peers read each other's device buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from ray_l4.exchange.codecs import Payload
from ray_l4.exchange.links import Ticket, Traffic, dtype_name, named_dtype

_ALIGNMENT = 256
"""Bytes; every tensor begins at a multiple of it, as in PyTorch's own allocations."""


class Memory(Protocol):
    """Memory that other processes can map."""

    def allocate(self, num_bytes: int) -> tuple[Tensor, Any]:
        """Return a uint8 tensor of that size, and a handle (plain data) by which another process opens it."""

    def open(self, handle: Any) -> Tensor:
        """Return the tensor behind another process' handle."""

    def settle(self) -> None:
        """Return once everything written can be read by others."""


class CudaMemory:
    """Device memory shared by CUDA IPC: for peers on one GPU, or on GPUs of one host that reach each other's memory."""

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


class DeviceBuffers:
    """Predictions are written into a buffer that this student allocates once, and read where they are.

    The buffer has so many slots that none is written again while a reader may still read it: of one student at most
    ``steps_ahead`` steps are submitted before the oldest has ended for all (``run.step_loop``), and the present and the
    next are under way. A step that needs more room has a larger buffer allocated. A ticket names the buffer, which a
    reader opens the first time it sees it, and the place in it.
    """

    def __init__(self, me: int, device: torch.device, memory: Memory, slots: int) -> None:
        """``slots``: at least ``steps_ahead`` + 2."""
        self.me = me
        self._device = device
        self._memory = memory
        self._slots = slots
        self._buffer: Tensor | None = None
        self._handle: Any = None
        self._allocated = 0
        """Buffers allocated so far: the number of the present one."""
        self._step = 0
        self._opened: dict[int, tuple[int, Tensor]] = {}
        """Sender -> number of its buffer, and the buffer."""
        self._replaced: list[tuple[int, Tensor]] = []
        """Earlier buffers, which readers may still read, and the step until which they are kept."""
        self._traffic = Traffic()

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        room = sum(_rounded(tensor.nbytes) for tensor in payload.tensors.values())
        buffer = self._buffer_for(room)
        offset = self._step % self._slots * (len(buffer) // self._slots)
        self._step += 1
        parts = {}
        for name, tensor in payload.tensors.items():
            place = buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor)
            parts[name] = offset, dtype_name(tensor.dtype), tuple(tensor.shape)
            offset += _rounded(tensor.nbytes)
        self._memory.settle()
        self._traffic.sent += payload.num_bytes if readers else 0
        return Ticket(self.me, payload.codec, payload.num_bytes, (self._allocated, self._handle, parts))

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        self._traffic.received += sum(ticket.num_bytes for ticket in tickets)
        return [self._read(ticket) for ticket in tickets]

    def traffic(self) -> tuple[int, int]:
        return self._traffic.take()

    def _buffer_for(self, room: int) -> Tensor:
        """Return the buffer, with at least ``room`` bytes a slot."""
        self._replaced = [(until, buffer) for until, buffer in self._replaced if until > self._step]
        if self._buffer is None or len(self._buffer) < room * self._slots:
            if self._buffer is not None:
                self._replaced.append((self._step + self._slots, self._buffer))
            self._buffer, self._handle = self._memory.allocate(max(room, _ALIGNMENT) * self._slots)
            self._allocated += 1
        return self._buffer

    def _read(self, ticket: Ticket) -> Payload:
        number, handle, parts = ticket.content
        if self._opened.get(ticket.sender, (0, None))[0] != number:
            self._opened[ticket.sender] = number, self._memory.open(handle)
        buffer = self._opened[ticket.sender][1]
        read = {}
        for name, (offset, dtype, shape) in parts.items():
            size = math.prod(shape) * named_dtype(dtype).itemsize
            read[name] = buffer[offset : offset + size].view(named_dtype(dtype)).view(shape).to(self._device)
        return Payload(ticket.codec, read)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def cuda_link(me: int, device: torch.device, steps_ahead: int) -> DeviceBuffers:
    """Build the link of a student on a GPU."""
    return DeviceBuffers(me, device, CudaMemory(device), steps_ahead + 2)
