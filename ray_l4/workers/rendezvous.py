"""Rendezvous: how ranks meet to form process groups of torch.distributed, and form new ones without a lost member.

PyTorch's default group exists once per process and is hard to leave, so these groups are objects of their own. Their
members meet at a store that none of them owns and that therefore outlives each of them (REFERENCE.md#ray).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ray_l4.errors import PeerLostError

_WAITING = 4096
"""Members that may be about to connect to a store at the same time; the system may allow fewer."""
_GLOO_THREADS = 2
"""Threads that move bytes while training goes on; gloo's own default."""


@dataclass(frozen=True)
class Rendezvous:
    """The place where the members of one group meet, as one member sees it."""

    host: str
    port: int
    name: str
    """Unique among all groups that are ever formed at this store."""
    rank: int
    size: int
    timeout: float
    """Seconds to wait for the others, and for each transfer later."""


@dataclass(frozen=True)
class RendezvousStore:
    """A store on this machine at which members of groups meet; it lives as long as this object."""

    host: str
    store: dist.TCPStore
    timeout: float
    """Seconds that members wait for each other."""

    @classmethod
    def open(cls, host: str, timeout: float) -> RendezvousStore:
        """Open a store at ``host``, an address of this machine, on a free port."""
        listener = _listener(host)  # left to itself, the store would listen at all addresses of the machine
        port = listener.getsockname()[1]
        taken = listener.detach()  # the store closes it
        store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=taken)
        return cls(host, store, timeout)

    def members(self, name: str, size: int) -> list[Rendezvous]:
        """Return the rendezvous of each member of a new group. ``name`` must be new to this store."""
        first = Rendezvous(self.host, self.store.port, name, 0, size, self.timeout)
        return [replace(first, rank=rank) for rank in range(size)]


def _listener(host: str) -> socket.socket:
    family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.bind(place)
    listener.listen(_WAITING)
    return listener


def join(rendezvous: Rendezvous, device: torch.device, address: str) -> Any:
    """Return the process group once all members have joined: nccl on GPUs, else gloo through ``address``.

    ``address``: an address of this process' machine. Raises PeerLostError if the members do not join in time.
    """
    limit = timedelta(seconds=rendezvous.timeout)
    try:
        tcp_store = dist.TCPStore(
            rendezvous.host, rendezvous.port, is_master=False, wait_for_workers=False, timeout=limit
        )
        store = dist.PrefixStore(rendezvous.name, tcp_store)
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
