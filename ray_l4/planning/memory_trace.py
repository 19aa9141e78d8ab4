"""A trace of the memory that tensors occupy, by purpose, while a program runs on tensors without data."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_VALUE_READ = torch.ops.aten._local_scalar_dense.default
"""The operator behind ``item()``, ``tolist()``, ``int()``, ``float()`` and ``bool()``."""
_COMPARISONS = (torch.ops.aten.allclose.default, torch.ops.aten.equal.default)
"""Operators that compare whole tensors by value and return a Python bool."""

HEAP_LIMIT = 32 * 2**20
"""Bytes. glibc maps a block of at least this size separately and returns it to the system when it is freed; smaller
blocks share a heap."""

HEAP_SLACK = 1.25
"""Size of the heap at its fullest, per byte in use: blocks of different sizes leave gaps between them. Fitted to the
cases of ``python -m analysis.benchmarks.memory``. With the environment variable ``MALLOC_MMAP_THRESHOLD_=65536``, which
bypasses the heap, the same steps take what their tensors take, within 3 %."""

HEAP_KEPT = 1.05
"""Size of the heap later on, per byte that was in use at its fullest: little of a heap is ever returned to the system.
Fitted to the same cases."""


@dataclass
class _Storage:
    """One live tensor storage."""

    nbytes: int
    purpose: str


class MemoryTrace(TorchDispatchMode):
    """Live bytes of all storages created on one device while the mode is active, by their purpose.

    A storage has the purpose that was current when it was created (``begin``). The trace sees the results of operators,
    and so covers any model and any loss, with all that autograd keeps for them; scratch memory inside an operator is
    not seen.

    Inside ``FakeTensorMode``, integer and boolean tensors that are created from nothing, and all that is computed from
    them alone, keep their values, so that batches can be cut and positions looked up; they are small. All other tensors
    have no values. Reading one returns 1 (or True), and comparing two by value returns True, however often: finite
    losses, valid counters and passed checks. A program that decides by a value which code to run must be given that
    decision as an argument (``PositionLogits(traits=...)``).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        """Purpose -> bytes."""
        self.peak: Mapping[str, int] = {}
        """``live`` when its total was largest."""
        self.resident = 0
        """Largest number of bytes that the process had from the system, if tensors lie in glibc's heap and mappings."""
        self._device = device
        self._purpose = "other"
        self._largest = 0
        self._in_heap, self._fullest_heap = 0, 0
        self._storages: weakref.WeakKeyDictionary[torch.UntypedStorage, _Storage] = weakref.WeakKeyDictionary()

    @property
    def held(self) -> int:
        """Bytes that the process has from the system now, in use or not."""
        return self._from_system(HEAP_KEPT)

    def begin(self, purpose: str) -> None:
        """Attribute storages created from now on to ``purpose``."""
        self._purpose = purpose

    def assign(self, tensor: Tensor, purpose: str) -> None:
        """Attribute the existing storage of ``tensor`` to ``purpose``."""
        storage = self._storages.get(tensor.untyped_storage())
        if storage is not None:
            self.live[storage.purpose] -= storage.nbytes
            self.live[purpose] += storage.nbytes
            storage.purpose = purpose

    def rename(self, before: str, purpose: str) -> None:
        """Attribute all live storages of the purpose ``before`` to ``purpose``."""
        for storage in self._storages.values():
            if storage.purpose == before:
                storage.purpose = purpose
        self.live[purpose] += self.live.pop(before, 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        if given and not any(isinstance(tensor, FakeTensor) for tensor in given):
            result = _on_values(func, args, options)
        elif func is _VALUE_READ:
            return _one(given[0].dtype)
        elif func in _COMPARISONS:
            return True
        else:
            result = func(*args, **options)
            if not given and isinstance(result, Tensor) and not result.dtype.is_floating_point:
                result = _on_values(func, args, options)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device.type:
                self._enter(leaf.untyped_storage())
        self._note_peak()
        return result

    def _enter(self, key: torch.UntypedStorage) -> None:
        if key not in self._storages:
            storage = self._storages[key] = _Storage(key.nbytes(), self._purpose)
            self._count(storage, 1)
            weakref.finalize(key, self._count, storage, -1)

    def _count(self, storage: _Storage, sign: int) -> None:
        self.live[storage.purpose] += sign * storage.nbytes
        if storage.nbytes < HEAP_LIMIT:
            self._in_heap += sign * storage.nbytes

    def _note_peak(self) -> None:
        total = self.live.total()
        if total > self._largest:
            self._largest, self.peak = total, dict(self.live)
        self._fullest_heap = max(self._fullest_heap, self._in_heap)
        self.resident = max(self.resident, self._from_system(HEAP_SLACK))

    def _from_system(self, slack: float) -> int:
        return self.live.total() - self._in_heap + round(slack * self._fullest_heap)


def _on_values(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    with unset_fake_temporarily():
        return func(*args, **kwargs)


def _one(dtype: torch.dtype) -> Any:
    """Return 1 as the Python number, or bool, that a tensor of this type reads as."""
    with unset_fake_temporarily():
        return torch.ones((), dtype=dtype).item()
