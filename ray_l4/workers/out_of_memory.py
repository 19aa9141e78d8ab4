"""Errors that mean that a worker ran out of memory, told apart without loading PyTorch, and what to do about them."""

from __future__ import annotations

from ray_l4.errors import PeerError, first_line

_TEXTS = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "out of memory")
"""Parts of the messages of PyTorch's allocators, which raise a plain RuntimeError on CPUs and in some CUDA calls."""

REMEDY = (
    "Use smaller micro-batches (students.micro_batch in the cluster profile), more ranks for each student "
    "(students.shards_per_student) or model.gradient_checkpointing: true; ray-l4 plan shows how much memory they take."
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed. ``torch.OutOfMemoryError`` is a RuntimeError too."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def out_of_memory(worker: object, error: BaseException) -> PeerError:
    """Return the error that names the ``worker`` (by its ``str``), the failed allocation and what to do."""
    return PeerError(f"{worker}: ran out of memory ({first_line(error)}). {REMEDY}")
