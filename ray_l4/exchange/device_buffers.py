"""A link within one host: peers read each other's GPU memory directly, without copies through host memory."""

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
"""Tensors start at multiples of this number of bytes, as in PyTorch's own allocations."""


class Memory(Protocol):
    """Memory that other processes can map."""

    def allocate(self, num_bytes: int) -> tuple[Tensor, Any]:
        """Return a uint8 tensor of that size, and a handle (plain data) with which another process can open it."""

    def open(self, handle: Any) -> Tensor:
        """Return the tensor for a handle of another process."""

    def synchronize(self) -> None:
        """Wait until other processes can read everything written."""


class CudaMemory:
    """GPU memory shared through CUDA IPC, by peers on one GPU or on GPUs of one host with peer access."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, num_bytes: int) -> tuple[Tensor, Any]:
        tensor = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        _, handle = reduce_tensor(tensor)
        return tensor, handle

    def open(self, handle: Any) -> Tensor:
        return rebuild_cuda_tensor(*handle)

    def synchronize(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()


class DeviceBuffers:
    """A link whose sender writes payloads into a buffer of its own, where readers read them in place.

    Payloads use the regions of the buffer in turn. There are so many that none is overwritten while a reader may still
    read it: at most ``steps_ahead`` steps are submitted before the oldest has ended for all students
    (``run.step_loop``), and the current and the next one are under way. A payload that does not fit into a region makes
    the student allocate a larger buffer. A ticket holds the buffer's handle, which a reader opens when it first sees
    it, and the offsets of the tensors.
    """

    def __init__(self, peer: int, device: torch.device, memory: Memory, num_regions: int) -> None:
        """``num_regions``: at least ``steps_ahead`` + 2 times the payloads of a step."""
        self.peer = peer
        self._device = device
        self._memory = memory
        self._num_regions = num_regions
        self._buffer: Tensor | None = None
        self._handle: Any = None
        self._allocated = 0
        """Number of buffers allocated so far, which identifies the current one."""
        self._step = 0
        self._opened: dict[int, tuple[int, Tensor]] = {}
        """Sender -> number of its buffer that is open, and the buffer."""
        self._replaced: list[tuple[int, Tensor]] = []
        """Earlier buffers that readers may still read, each with the step until which it is kept."""
        self._traffic = Traffic()

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        size = sum(_aligned(tensor.nbytes) for tensor in payload.tensors.values())
        buffer = self._buffer_for(size)
        offset = self._step % self._num_regions * (len(buffer) // self._num_regions)
        self._step += 1
        parts = {}
        for name, tensor in payload.tensors.items():
            view = buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            view.copy_(tensor)
            parts[name] = offset, dtype_name(tensor.dtype), tuple(tensor.shape)
            offset += _aligned(tensor.nbytes)
        self._memory.synchronize()
        self._traffic.sent += payload.num_bytes if readers else 0
        return Ticket(self.peer, payload.codec, payload.num_bytes, (self._allocated, self._handle, parts))

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        self._traffic.received += sum(ticket.num_bytes for ticket in tickets)
        return [self._read(ticket) for ticket in tickets]

    def traffic(self) -> tuple[int, int]:
        return self._traffic.take()

    def _buffer_for(self, region_bytes: int) -> Tensor:
        """Return a buffer with at least ``region_bytes`` in each region, allocating one if necessary."""
        self._replaced = [(until, buffer) for until, buffer in self._replaced if until > self._step]
        if self._buffer is None or len(self._buffer) < region_bytes * self._num_regions:
            if self._buffer is not None:
                self._replaced.append((self._step + self._num_regions, self._buffer))
            self._buffer, self._handle = self._memory.allocate(max(region_bytes, _ALIGNMENT) * self._num_regions)
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


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def cuda_link(peer: int, device: torch.device, steps_ahead: int, payloads: int = 1) -> DeviceBuffers:
    """Build the link of a student on a GPU, which publishes at most so many ``payloads`` in a step."""
    return DeviceBuffers(peer, device, CudaMemory(device), (steps_ahead + 2) * payloads)
