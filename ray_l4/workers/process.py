"""The process of a worker: its threads, its memory, and its address."""

from __future__ import annotations

import resource

import torch

from ray_l4.config.cluster import Resources


def use_threads(resources: Resources) -> None:
    """Give PyTorch in this process as many threads as the profile says."""
    if resources.threads is not None:
        torch.set_num_threads(resources.threads)


def peak_memory_bytes() -> int:
    """Return the largest memory of this process so far: on the GPU if it uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def address() -> str:
    """Return this node's address, at which other nodes reach it."""
    from ray.util import get_node_ip_address  # only where processes form groups

    return get_node_ip_address()
