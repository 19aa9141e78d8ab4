"""The collective link, with a gloo process group whose ranks are threads of this process."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ray_l4.errors import PeerLostError
from ray_l4.exchange.codecs import Payload
from ray_l4.exchange.collective import Collective, is_lost_connection
from ray_l4.exchange.links import Ticket, shapes_of
from ray_l4.methods import Topology, complete, ring, star
from ray_l4.workers.rendezvous import Rendezvous, RendezvousStore, join

CPU = torch.device("cpu")
HOST = "127.0.0.1"
LIMIT = 20.0


def on_all_ranks(peers: Sequence[int], work: Callable[[Collective], Any], timeout: float = LIMIT) -> list[Any]:
    """Call ``work`` with each peer's link at the same time; returns each peer's result or exception."""
    store = RendezvousStore.open(HOST, timeout)
    ranks = {peer: rank for rank, peer in enumerate(peers)}
    members = store.members("peers", len(peers))

    def of(peer: int) -> Any:
        try:
            return work(Collective(peer, CPU, join(members[ranks[peer]], CPU, HOST), ranks))
        except PeerLostError as error:
            return error

    with ThreadPoolExecutor(len(peers)) as threads:
        return list(threads.map(of, peers))


def payload(peer: int, step: int, rows: int = 3) -> Payload:
    """Make a payload of several types whose values depend on peer and step."""
    generator = torch.Generator().manual_seed(100 * step + peer)
    return Payload(
        "topk",
        {
            "qa": torch.randn(rows, 5, generator=generator),
            "qa/ids": torch.randint(0, 99, (rows, 5), generator=generator, dtype=torch.int32),
            "lm": torch.randn(2, rows, generator=generator).half(),
        },
    )


def same(found: Payload, expected: Payload) -> bool:
    return found.codec == expected.codec and all(
        torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype
        for name, tensor in expected.tensors.items()
    )


GRAPHS = {
    "two": complete(2),
    "complete": complete(4),
    "ring": ring(3),
    "star": star(4),
    "one way": Topology(3, frozenset({(0, 1), (2, 1)})),
    "after a loss": complete(4).without([1]),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_reader_receives_its_teachers_payloads(graph: str) -> None:
    """Several steps in a row, with payloads of different sizes, including an empty one."""
    topology = GRAPHS[graph]
    steps = [3, 0, 17]

    def work(link: Collective) -> tuple[bool, tuple[int, int]]:
        right = True
        for step, rows in enumerate(steps):
            readers = [student for teacher, student in sorted(topology.edges) if teacher == link.peer]
            link.publish(payload(link.peer, step, rows), readers, at_once=False)
            teachers = topology.teachers_of(link.peer)
            tickets = [
                Collective(t, CPU, link.group, {}).publish(payload(t, step, rows), (), at_once=False) for t in teachers
            ]
            received = link.collect(tickets)
            right &= all(same(own, payload(t, step, rows)) for own, t in zip(received, teachers, strict=True))
        return right, link.traffic()

    size = sum(payload(0, 0, rows).num_bytes for rows in steps)
    found = on_all_ranks(topology.students, work)
    for peer, (right, traffic) in zip(topology.students, found, strict=True):
        assert right
        readers = sum(teacher == peer for teacher, _ in topology.edges)
        assert traffic == (size * readers, size * len(topology.teachers_of(peer)))


def test_a_teacher_that_does_not_learn_sends_at_once() -> None:
    def work(link: Collective) -> Any:
        if link.peer == 1:
            for step in range(3):
                ticket = link.publish(payload(1, step), (0,), at_once=True)
            link._finish()
            return ticket.num_bytes
        shapes = Collective(1, CPU, link.group, {}).publish(payload(1, 0), (), at_once=False)
        return [same(link.collect([shapes])[0], payload(1, step)) for step in range(3)]

    assert on_all_ranks([0, 1], work) == [[True] * 3, payload(1, 0).num_bytes]


@pytest.mark.parametrize("peers", [2, 3, 5])
def test_one_all_reduce_gives_every_peer_the_mean_of_the_others(peers: int) -> None:
    def probabilities(peer: int) -> torch.Tensor:
        return torch.randn(6, 11, generator=torch.Generator().manual_seed(peer)).mul(5).softmax(-1)

    def work(link: Collective) -> tuple[torch.Tensor, tuple[int, int]]:
        own = Payload("mean", {"qa": probabilities(link.peer), "lm": torch.empty(0, 11)})
        others = tuple(peer for peer in range(peers) if peer != link.peer)
        ticket = link.publish(own, others, at_once=False)
        (mean,) = link.collect([ticket] * (peers - 1))
        assert torch.equal(own.tensors["qa"], probabilities(link.peer)), "its own stay what they were"
        assert mean.codec == "mean" and mean.tensors["lm"].shape == (0, 11)
        return mean.tensors["qa"], link.traffic()

    size = probabilities(0).nbytes
    for peer, (mean, traffic) in enumerate(on_all_ranks(range(peers), work)):
        expected = torch.stack([probabilities(other) for other in range(peers) if other != peer]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
        assert (mean >= 0).all()
        assert traffic == (2 * (peers - 1) * size // peers,) * 2


def test_a_lost_partner_raises_an_error_instead_of_blocking() -> None:
    def work(link: Collective) -> Any:
        if link.peer == 1:
            return "gone"
        ticket = Collective(1, CPU, link.group, {}).publish(payload(1, 0), (), at_once=False)
        return link.collect([ticket])

    began = time.monotonic()
    error, _ = on_all_ranks([0, 1], work, timeout=2.0)
    assert isinstance(error, PeerLostError)
    assert "student 0: a peer is gone; predictions did not get through" in str(error)
    assert time.monotonic() - began < LIMIT


def test_a_partner_that_dies_between_two_steps_is_reported_as_lost() -> None:
    """By then gloo knows of the closed connection, and raises before a transfer starts."""
    store = RendezvousStore.open(HOST, LIMIT)
    mine, partner = store.members("peers", 2)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=one_step_and_gone, args=(partner,), daemon=True)
    process.start()
    link = Collective(0, CPU, join(mine, CPU, HOST), {0: 0, 1: 1})
    theirs = Collective(1, CPU, link.group, {}).publish(payload(1, 0), (), at_once=False)
    link.publish(payload(0, 0), (1,), at_once=False)
    assert same(link.collect([theirs])[0], payload(1, 0))
    process.join(LIMIT)
    link.publish(payload(0, 1), (1,), at_once=False)
    with pytest.raises(PeerLostError, match="student 0: a peer is gone; predictions did not get through"):
        link.collect([theirs])


def one_step_and_gone(member: Rendezvous) -> None:
    """Run the partner of the test above, in its own process."""
    link = Collective(1, CPU, join(member, CPU, HOST), {0: 0, 1: 1})
    theirs = Collective(0, CPU, link.group, {}).publish(payload(0, 0), (), at_once=False)
    link.publish(payload(1, 0), (0,), at_once=False)
    link.collect([theirs])
    os._exit(0)


def test_while_some_peers_only_predict_payloads_are_sent_one_by_one() -> None:
    """After a loss, peers that are ahead only predict for those that catch up, so no sum over all peers is taken."""

    def work(link: Collective) -> Any:
        own = Payload("mean", {"qa": torch.full((2, 3), float(link.peer))})
        if link.peer > 0:
            link.publish(own, (0,), at_once=True)
            link._finish()
            return None
        link.publish(own, (), at_once=False)
        tickets = [
            Collective(peer, CPU, link.group, {}).publish(Payload("mean", {"qa": torch.empty(2, 3)}), (), at_once=False)
            for peer in (1, 2)
        ]
        return [received.tensors["qa"].unique().item() for received in link.collect(tickets)]

    assert on_all_ranks([0, 1, 2], work)[0] == [1.0, 2.0]


def test_missing_ranks_are_reported_with_the_address_of_the_store() -> None:
    store = RendezvousStore.open(HOST, 1.0)
    member, _ = store.members("peers", 2)
    with pytest.raises(PeerLostError, match=rf"rank 0 of 2 did not meet the others at {HOST}:{member.port} within 1 s"):
        join(member, CPU, HOST)


@pytest.mark.slow
def test_an_unreachable_store_is_reported_in_time() -> None:
    store = RendezvousStore.open(HOST, 1.0)
    member, _ = store.members("peers", 2)
    del store
    began = time.monotonic()
    with pytest.raises(PeerLostError, match="did not meet the others"):
        join(member, CPU, HOST)
    assert time.monotonic() - began < LIMIT


def test_groups_that_share_a_store_do_not_interfere() -> None:
    store = RendezvousStore.open(HOST, LIMIT)
    members = [member for name in ("first", "second") for member in store.members(name, 2)]
    with ThreadPoolExecutor(4) as threads:
        links = list(threads.map(lambda own: Collective(own.rank, CPU, join(own, CPU, HOST), {0: 0, 1: 1}), members))

        def exchange(index: int) -> Payload:
            link, other = links[index], 1 - members[index].rank
            ticket = Collective(other, CPU, link.group, {}).publish(payload(other, 0), (), at_once=False)
            link.publish(payload(link.peer, index // 2), (other,), at_once=False)
            return link.collect([ticket])[0]

        found = list(threads.map(exchange, range(4)))
    assert all(same(own, payload(1 - members[i].rank, i // 2)) for i, own in enumerate(found))


# --- errors that count as a lost peer

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:546]"
MISMATCH = (
    f"[enforce fail at {GLOO[1:-1]}] op.preamble.length <= op.nbytes. 160 vs 12. Received data size doesn't match"
)


@pytest.mark.parametrize(
    "error",
    [
        dist.DistNetworkError("The client socket has failed to connect"),
        dist.DistBackendError("NCCL error: remote process exited"),
        dist.DistStoreError("wait timeout after 1000ms"),
        RuntimeError(f"{GLOO} Connection closed by peer [127.0.0.1]:41234"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 2000ms"),
    ],
    ids=lambda error: str(error)[-20:],
)
def test_communication_errors_of_torch_distributed_and_gloo_count_as_a_loss(error: RuntimeError) -> None:
    assert is_lost_connection(error)


@pytest.mark.parametrize(
    "error", [RuntimeError(MISMATCH), RuntimeError("shape mismatch"), RuntimeError("CUDA error: out of memory")]
)
def test_a_defect_of_the_program_is_not_a_loss(error: RuntimeError) -> None:
    """A restart would not remove it."""
    assert not is_lost_connection(error)


class Refusing:
    """A process group that raises one error, either at once or when its work is waited for."""

    def __init__(self, error: RuntimeError, when: str) -> None:
        self.error, self.when = error, when

    def name(self) -> str:
        return "gloo"

    def recv(self, tensors: Any, source: int, tag: int) -> Refusing:
        return self._begun()

    def allreduce(self, tensors: Any) -> Refusing:
        return self._begun()

    def wait(self) -> None:
        raise self.error

    def _begun(self) -> Refusing:
        if self.when == "at once":
            raise self.error
        return self


@pytest.mark.parametrize("when", ["at once", "in wait"])
@pytest.mark.parametrize("codec", ["topk", "mean"])
def test_payloads_of_different_sizes_do_not_count_as_a_loss(codec: str, when: str) -> None:
    """The error is the one that gloo would raise; in reality it ends the process."""
    for error, expected in ((RuntimeError(MISMATCH), RuntimeError), (dist.DistBackendError("gone"), PeerLostError)):
        link = Collective(0, CPU, Refusing(error, when), {0: 0, 1: 1})
        own = Payload(codec, payload(0, 0).tensors)
        if codec == "mean":
            link.publish(own, (1,), at_once=False)
        ticket = Ticket(1, codec, own.num_bytes, shapes_of(own))
        with pytest.raises(expected) as caught:
            link.collect([ticket])
        assert type(caught.value) is expected
        assert error in (caught.value, caught.value.__cause__)
