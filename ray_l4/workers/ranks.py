"""The process group of a student's ranks, and the sharding of its model over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ray_l4.errors import PeerLostError
from ray_l4.exchange.collective import is_lost_connection
from ray_l4.learner.sharding import ALONE, DataParallel, FullyShard, Sharding
from ray_l4.workers.process import address
from ray_l4.workers.rendezvous import Rendezvous, join


def sharding_of(rendezvous: Rendezvous | None, kind: Literal["data", "full"], device: torch.device) -> Sharding:
    """Join the other ranks of the student and return its sharding; ``ALONE`` if there are no other ranks.

    Raises PeerLostError if the others do not join in time.
    """
    if rendezvous is None:
        return ALONE
    if kind == "data":
        return DataParallel(rendezvous.rank, rendezvous.size, join(rendezvous, device, address()))
    return FullyShard(_mesh(rendezvous, device))


@contextmanager
def other_ranks(peer: int) -> Iterator[None]:
    """Within this context, turn an error that means that another rank of the student is gone into PeerLostError."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise PeerLostError(f"student {peer}: one of its ranks is gone: {str(error).splitlines()[0]}") from error


def _mesh(rendezvous: Rendezvous, device: torch.device) -> DeviceMesh:
    """Build a device mesh on PyTorch's default group, as a mesh requires, after leaving any earlier default group."""
    limit = timedelta(seconds=rendezvous.timeout)
    if dist.is_initialized():
        dist.destroy_process_group()
    try:
        store = dist.TCPStore(rendezvous.host, rendezvous.port, is_master=False, wait_for_workers=False, timeout=limit)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(rendezvous.name, store),
            rank=rendezvous.rank,
            world_size=rendezvous.size,
            timeout=limit,
        )
        return init_device_mesh(device.type, (rendezvous.size,), mesh_dim_names=("shard",))
    except (RuntimeError, dist.DistError) as error:
        raise PeerLostError(
            f"rank {rendezvous.rank} of {rendezvous.size} of a student did not meet the others at {rendezvous.host}:"
            f"{rendezvous.port} within {rendezvous.timeout:g} s: {str(error).splitlines()[0]}"
        ) from error
