"""A worker without any memory left still says so: its error reaches the caller, and no limit of time has to."""

from __future__ import annotations

import re
import resource
import time
import uuid
from pathlib import Path
from typing import Protocol

import pytest
import ray

from ray_l4.cluster.actors import actor_class
from ray_l4.cluster.pulses import Pulse
from ray_l4.cluster.rpc import RayRpc, get
from ray_l4.errors import PeerError, PeerLostError


class Calls(Protocol):
    """An interface."""

    def ready(self) -> None: ...

    def fill(self, spare: int) -> None: ...


class Worker:
    """Takes all memory that it may have."""

    def __str__(self) -> str:
        return "student 0, stage 0, step 3"

    def ready(self) -> None:
        """Nothing to do."""

    def fill(self, spare: int) -> None:
        """Limit the address space to what there is and ``spare`` bytes, and fill it to the last block of 64 bytes."""
        size = re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
        assert size is not None
        resource.setrlimit(resource.RLIMIT_AS, (int(size[1]) * 1024 + spare, resource.RLIM_INFINITY))
        held: list[bytearray] = []
        block = 2**20
        while True:
            try:
                held.append(bytearray(block))
            except MemoryError:
                if block <= 64:
                    raise
                block //= 2


@pytest.mark.parametrize("spare", [0, 2**26])
def test_its_error_arrives_and_names_it(ray_cluster: None, spare: int) -> None:
    rpc = RayRpc()
    pulse = Pulse(f"student 0/{uuid.uuid4().hex}", 20.0)
    actor = ray.remote(num_cpus=0)(actor_class(Calls, "tests.workers.test_workers_out_of_memory_ray:Worker"))
    worker = actor.remote(pulse=(pulse.name, pulse.limit))
    rpc.pulses.watch(worker, "student 0", pulse, "students")
    get(rpc, rpc.call(worker, Calls.ready), 60.0, "start")
    began = time.monotonic()
    with pytest.raises(PeerError, match=r"^student 0, stage 0, step 3: ran out of memory \(.*micro_batch") as caught:
        get(rpc, rpc.call(worker, Calls.fill, spare), 60.0, "student 0, figures")
    assert not isinstance(caught.value, PeerLostError), "it would be learned again"
    assert time.monotonic() - began < 20.0
    rpc.end(worker)
