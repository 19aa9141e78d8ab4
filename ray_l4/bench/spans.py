"""Where the time of a step goes, how many operations and bytes it takes, and what the machine could do at best."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_PREFIX = "ray_l4."
_MATRIX, _VECTOR = {"cpu": 1024, "cuda": 8192}, 2**25
"""Rows of the square matrices whose product takes a device to its limit, and elements of what is copied."""
_ATTEMPTS = 5


@contextmanager
def span(name: str) -> Iterator[None]:
    """Label what runs within the context, for ``shares``."""
    with record_function(_PREFIX + name):
        yield


def shares(work: Callable[[], Any]) -> dict[str, float]:
    """Run ``work`` under PyTorch's profiler; return the share of its CPU time in each labelled span, and in none."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler, span("all"):
        work()
    found = {
        event.key.removeprefix(_PREFIX): event.cpu_time_total
        for event in profiler.key_averages()
        if event.key.startswith(_PREFIX)
    }
    whole = found.pop("all")
    known = {name: round(own / whole, 4) for name, own in found.items()}
    return known | {"other": round(max(0.0, 1.0 - sum(known.values())), 4)}


class Counts(NamedTuple):
    """What a step takes, whatever it runs on."""

    flops: int
    """Floating-point operations of matrix products and attention."""
    num_bytes: int
    """Bytes of all operators' inputs and results, each counted whenever it is used: an upper bound of what memory has
    to deliver."""


class _ByteCounter(TorchDispatchMode):
    """Adds up the bytes that operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.num_bytes["all"] += sum(tensor.nbytes for tensor in tensors)
        return result


def counts(work: Callable[[], Any]) -> Counts:
    """Run ``work`` once, counting operations and bytes."""
    with FlopCounterMode(display=False, custom_mapping=_uncounted()) as flops:
        work()
    with _ByteCounter() as counter:
        work()
    return Counts(flops.get_total_flops(), counter.num_bytes["all"])


def _uncounted() -> dict[Any, Any]:
    """Return the operators that PyTorch's counter does not know: the product of ``losses.output_product``."""
    product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return {} if product is None else {product: _flops_of_product}


def _flops_of_product(hidden_ND: Any, weight_VD: Any, *others: Any, **named: Any) -> int:
    """Count those of a product of matrices of these shapes."""
    return 2 * int(hidden_ND[0]) * int(weight_VD[0]) * int(weight_VD[1])


class Ceilings(NamedTuple):
    """What this machine does at best, measured now with the threads of this process."""

    flops_per_second: float
    """Of a product of two square matrices."""
    bytes_per_second: float
    """Read and written by a copy that is larger than the caches."""


def ceilings(device: torch.device, dtype: torch.dtype = torch.float32) -> Ceilings:
    """Measure the ceilings, that of products with matrices of this type: the best of a few attempts."""
    rows = _MATRIX[device.type]
    a, b = (torch.randn(rows, rows, device=device, dtype=dtype) for _ in range(2))
    source, target = torch.zeros(_VECTOR, device=device), torch.empty(_VECTOR, device=device)
    product = min(_seconds(lambda: a @ b, device) for _ in range(_ATTEMPTS))
    copy = min(_seconds(lambda: target.copy_(source), device) for _ in range(_ATTEMPTS))
    return Ceilings(2 * rows**3 / product, 2 * source.nbytes / copy)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    work()
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait until everything submitted to a GPU is done; on a CPU, everything is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the quantiles 0.2, 0.5 and 0.8."""
    ordered = sorted(values)
    at = {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in (("p20", 0.2), ("p80", 0.8))
    }
    return {"p20": at["p20"], "p50": statistics.median(values), "p80": at["p80"]}
