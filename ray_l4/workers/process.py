"""The threads, memory and address of a worker's process."""

from __future__ import annotations

import resource
import sys

from ray_l4.config.cluster import Resources


def use_threads(resources: Resources) -> None:
    """Set the number of PyTorch's threads in this process, if the profile gives one."""
    if resources.threads is not None:
        import torch

        torch.set_num_threads(resources.threads)


def peak_memory_bytes() -> int:
    """Return the peak memory of this process in bytes: allocated GPU memory if it uses a GPU, else resident memory."""
    torch = sys.modules.get("torch")  # a process that has not loaded PyTorch uses no GPU memory
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def address() -> str:
    """Return the address at which other nodes reach this one."""
    from ray.util import get_node_ip_address  # Ray, only where processes form groups

    return get_node_ip_address()
