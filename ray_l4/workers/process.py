"""The threads, memory and address of a worker's process."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_l4.config.cluster import Resources

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of two settings of glibc's allocator (``malloc.h``)."""
_KEPT_BYTES = 256 * 2**20
_LARGEST_KEPT_BLOCK = 32 * 2**20
"""The largest value that glibc takes."""


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB of memory that it frees, for the next step; with glibc alone.

    Otherwise glibc returns much of it to the operating system at every step, which then has to clear new pages. Blocks
    of more than 32 MiB are still returned at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK)


def use_threads(resources: Resources) -> None:
    """Set the number of PyTorch's threads in this process, if the profile gives one."""
    if resources.threads is not None:
        import torch

        torch.set_num_threads(resources.threads)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause Python's garbage collection while libraries are imported, which then takes a sixth less time.

    An import creates very many objects and drops few, so each collection searches all of them for nothing. Those that
    are there in the end are left out of later collections, too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def peak_memory_bytes() -> int:
    """Return the peak memory of this process in bytes: allocated GPU memory if it uses a GPU, else resident memory."""
    torch = sys.modules.get("torch")  # a process that has not loaded PyTorch uses no GPU memory
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the largest resident memory of this process so far.

    On Linux from ``VmHWM``: ``ru_maxrss`` survives ``exec``, so a small process started by a large one would report the
    size of its parent.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def address() -> str:
    """Return the address at which other nodes reach this one."""
    from ray.util import get_node_ip_address  # Ray, only where processes form groups

    return get_node_ip_address()
