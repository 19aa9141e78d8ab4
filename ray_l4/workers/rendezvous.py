"""Rendezvous: how ranks meet to form process groups of torch.distributed that can be formed anew without a lost member.

PyTorch's default group exists once per process and is hard to leave; these groups belong to whoever made them. Members
meet at a store that no member owns, so it outlives each of them (REFERENCE.md#ray).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ray_l4.errors import PeerLostError

_GLOO_THREADS = 2
"""They move bytes beside the training: gloo's own choice."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the members of a group meet, and how long one of them waits for the others."""

    host: str
    port: int
    name: str
    """Different for every group that is ever formed at this store."""
    rank: int
    size: int
    timeout: float
    """Seconds, for meeting and for every transfer later."""


@dataclass(frozen=True)
class RendezvousStore:
    """A store on this machine where members of groups meet, for as long as this object lives."""

    host: str
    store: dist.TCPStore
    timeout: float
    """Seconds that members wait for each other."""

    @classmethod
    def open(cls, host: str, timeout: float) -> RendezvousStore:
        """Open a store at ``host``, an address of this machine, on a free port."""
        return cls(host, dist.TCPStore(host, 0, is_master=True, wait_for_workers=False), timeout)

    def members(self, name: str, size: int) -> list[Rendezvous]:
        """Return each member's rendezvous of a new group; ``name`` must never have been used here before."""
        first = Rendezvous(self.host, self.store.port, name, 0, size, self.timeout)
        return [replace(first, rank=rank) for rank in range(size)]


def join(rendezvous: Rendezvous, device: torch.device, address: str) -> Any:
    """Return the process group once all members are there: gloo through this process' ``address``, or nccl for GPUs.

    Raises PeerLostError if they do not come in time.
    """
    limit = timedelta(seconds=rendezvous.timeout)
    try:
        place = dist.TCPStore(rendezvous.host, rendezvous.port, is_master=False, wait_for_workers=False, timeout=limit)
        store = dist.PrefixStore(rendezvous.name, place)
        if device.type == "cuda":
            return _nccl(store, rendezvous, limit)
        return _gloo(store, rendezvous, limit, address)
    except (RuntimeError, dist.DistError) as error:
        raise PeerLostError(
            f"rank {rendezvous.rank} of {rendezvous.size} did not meet the others at {rendezvous.host}:"
            f"{rendezvous.port} within {rendezvous.timeout:g} s: {str(error).splitlines()[0]}. Can the nodes reach "
            "each other on all ports?"
        ) from error


def _gloo(store: dist.Store, rendezvous: Rendezvous, limit: timedelta, address: str) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = limit
    options._threads = _GLOO_THREADS
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rendezvous.rank, rendezvous.size, options)


def _nccl(store: dist.Store, rendezvous: Rendezvous, limit: timedelta) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, rendezvous.rank, rendezvous.size, options)
