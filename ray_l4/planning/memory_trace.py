"""What is in memory, and for what: a ledger of tensor storages, kept while a program runs on tensors without data."""

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

_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.allclose.default)
"""Where a program asks for a value, which a tensor without data does not have."""


HEAP_LIMIT = 32 * 2**20
"""Bytes from which on glibc maps a block of its own and gives it back as a whole; smaller ones share a heap."""

HEAP_SLACK = 1.25
"""Bytes of the heap for each byte in use there at its fullest: blocks of all sizes leave gaps between them. Fitted to
the cases of ``python -m analysis.benchmarks.memory``. With the environment variable ``MALLOC_MMAP_THRESHOLD_=65536``,
which leaves the heap unused, the same steps take what their tensors take, within 3 %."""

HEAP_KEPT = 1.05
"""The same for what is left of the heap later: little of what is freed is given back. Fitted likewise."""


@dataclass
class _Entry:
    """One storage."""

    nbytes: int
    purpose: str


class Ledger(TorchDispatchMode):
    """Live bytes of all storages made on one device while it is active, by the purpose that was current at the time.

    It works on the results of operators, so any model and any loss are counted, with what autograd keeps for them;
    scratch memory within an operator is not seen.

    Used inside ``FakeTensorMode`` it leaves whole numbers as they are, so that a batch can be cut and its positions
    looked up; they are small. All other tensors have no data: who reads a value out of one is given ``answer``.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.answer = 1.0
        self.live: Counter[str] = Counter()
        """Purpose -> bytes."""
        self.peak: Mapping[str, int] = {}
        """``live`` when its total was largest."""
        self.resident = 0
        """Bytes that the process had from the machine at most, where tensors lie in glibc's heap and mappings."""
        self._device = device
        self._purpose = "other"
        self._largest = 0
        self._in_heap, self._fullest_heap = 0, 0
        self._entries: weakref.WeakKeyDictionary[torch.UntypedStorage, _Entry] = weakref.WeakKeyDictionary()

    @property
    def held(self) -> int:
        """Bytes that the process has from the machine now, whatever of them is in use."""
        return self._from_machine(HEAP_KEPT)

    def begin(self, purpose: str) -> None:
        """What is made from now on serves ``purpose``."""
        self._purpose = purpose

    def assign(self, tensor: Tensor, purpose: str) -> None:
        """``tensor``, made before, serves ``purpose``."""
        entry = self._entries.get(tensor.untyped_storage())
        if entry is not None:
            self.live[entry.purpose] -= entry.nbytes
            self.live[purpose] += entry.nbytes
            entry.purpose = purpose

    def rename(self, before: str, purpose: str) -> None:
        """What is still there of what served ``before`` serves ``purpose``."""
        for entry in self._entries.values():
            if entry.purpose == before:
                entry.purpose = purpose
        self.live[purpose] += self.live.pop(before, 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        if given and not any(isinstance(tensor, FakeTensor) for tensor in given):
            result = _for_real(func, args, options)
        elif func in _READS:
            return self.answer
        else:
            result = func(*args, **options)
            if not given and isinstance(result, Tensor) and not result.dtype.is_floating_point:
                result = _for_real(func, args, options)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device.type:
                self._enter(leaf.untyped_storage())
        self._note_peak()
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._entries:
            entry = self._entries[storage] = _Entry(storage.nbytes(), self._purpose)
            self._count(entry, 1)
            weakref.finalize(storage, self._count, entry, -1)

    def _count(self, entry: _Entry, sign: int) -> None:
        self.live[entry.purpose] += sign * entry.nbytes
        if entry.nbytes < HEAP_LIMIT:
            self._in_heap += sign * entry.nbytes

    def _note_peak(self) -> None:
        total = self.live.total()
        if total > self._largest:
            self._largest, self.peak = total, dict(self.live)
        self._fullest_heap = max(self._fullest_heap, self._in_heap)
        self.resident = max(self.resident, self._from_machine(HEAP_SLACK))

    def _from_machine(self, slack: float) -> int:
        return self.live.total() - self._in_heap + round(slack * self._fullest_heap)


def _for_real(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    with unset_fake_temporarily():
        return func(*args, **kwargs)
