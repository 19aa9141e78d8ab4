"""The store at which the members of process groups meet."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from ray_l4.workers.rendezvous import RendezvousStore
from tests.cluster.listening_sockets import listening


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_store_listens_at_its_own_address_alone(host: str) -> None:
    before = listening([os.getpid()])
    rendezvous = RendezvousStore.open(host, 5.0)
    opened = [place for place in listening([os.getpid()]) if place not in before]
    assert [port for _, _, port in opened] == [rendezvous.store.port]
    assert all(address.is_loopback for _, address, _ in opened)


def test_several_members_reach_the_store_at_once() -> None:
    rendezvous = RendezvousStore.open("127.0.0.1", 5.0)
    members = rendezvous.members("group", 4)

    def say(rank: int) -> None:
        member = members[rank]
        client = dist.TCPStore(
            member.host, member.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=member.timeout)
        )
        client.set(f"member-{rank}", str(rank))

    threads = [threading.Thread(target=say, args=[rank]) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(rendezvous.store.get(f"member-{rank}")) for rank in range(4)] == [0, 1, 2, 3]
