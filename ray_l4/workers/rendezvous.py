"""Process groups of torch.distributed that can be formed anew with those who are left.

PyTorch's default group exists once per process and is hard to leave; these belong to nobody but who made them. Members
meet at a store that no member owns, so that it outlives each of them (RAY.md 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ray_l4.errors import PeerLostError

_GLOO_THREADS = 2
"""They move bytes beside the training: gloo's own choice."""


@dataclass(frozen=True)
class Meeting:
    """Where the members of a group meet, and how long one of them waits for the others."""

    host: str
    port: int
    name: str
    """Different for every group that is ever formed there."""
    rank: int
    size: int
    timeout: float
    """Seconds, for meeting and for every transfer later."""


def open_meeting_place(host: str) -> dist.TCPStore:
    """A store at ``host``, an address of this machine, on a free port; it lasts as long as the object."""
    return dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)


def join(meeting: Meeting, device: torch.device, address: str) -> Any:
    """The group, once all members are there: gloo through ``address``, this process' own, or nccl for GPUs.

    Raises PeerLostError if they do not come in time.
    """
    limit = timedelta(seconds=meeting.timeout)
    try:
        place = dist.TCPStore(meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=limit)
        store = dist.PrefixStore(meeting.name, place)
        if device.type == "cuda":
            return _nccl(store, meeting, limit)
        return _gloo(store, meeting, limit, address)
    except (RuntimeError, dist.DistError) as error:
        raise PeerLostError(
            f"rank {meeting.rank} of {meeting.size} did not meet the others at {meeting.host}:{meeting.port} within "
            f"{meeting.timeout:g} s: {str(error).splitlines()[0]}. Can the nodes reach each other on all ports?"
        ) from error


def _gloo(store: dist.Store, meeting: Meeting, limit: timedelta, address: str) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = limit
    options._threads = _GLOO_THREADS
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, meeting.rank, meeting.size, options)


def _nccl(store: dist.Store, meeting: Meeting, limit: timedelta) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, meeting.rank, meeting.size, options)
