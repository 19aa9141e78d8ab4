"""The process of a worker: its threads, its memory, and its address."""

from __future__ import annotations

import resource
import sys

from ray_l4.config.cluster import Resources


def use_threads(resources: Resources) -> None:
    """Give PyTorch in this process as many threads as the profile says."""
    if resources.threads is not None:
        import torch

        torch.set_num_threads(resources.threads)


def peak_memory_bytes() -> int:
    """Return the largest memory of this process so far: on the GPU if it uses one, else resident."""
    torch = sys.modules.get("torch")  # a process that never loaded it holds nothing on a GPU
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def address() -> str:
    """Return this node's address, at which other nodes reach it."""
    from ray.util import get_node_ip_address  # only where processes form groups

    return get_node_ip_address()
