"""Predictions from rank to rank: a process group of gloo, every rank a thread of this process."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ray_l4.errors import PeerLostError
from ray_l4.exchange.codecs import Payload
from ray_l4.exchange.collective import Collective
from ray_l4.methods import Topology, complete, ring, star
from ray_l4.workers.rendezvous import Meeting, join, open_meeting_place

CPU = torch.device("cpu")
HOST = "127.0.0.1"
LIMIT = 20.0


def everywhere(peers: Sequence[int], work: Callable[[Collective], Any], timeout: float = LIMIT) -> list[Any]:
    """What ``work`` gives for the link of each of ``peers``, all at the same time. Errors are results too."""
    place = open_meeting_place(HOST)
    ranks = {peer: rank for rank, peer in enumerate(peers)}

    def of(peer: int) -> Any:
        meeting = Meeting(HOST, place.port, "peers", ranks[peer], len(ranks), timeout)
        try:
            return work(Collective(peer, CPU, join(meeting, CPU, HOST), ranks))
        except PeerLostError as error:
            return error

    with ThreadPoolExecutor(len(peers)) as threads:
        return list(threads.map(of, peers))


def payload(peer: int, step: int, rows: int = 3) -> Payload:
    """Tensors of several types that belong to this peer and step."""
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
def test_every_reader_gets_what_its_teachers_sent(graph: str) -> None:
    """Several steps in a row, with different sizes, none among them; tickets come from the call before."""
    topology = GRAPHS[graph]
    steps = [3, 0, 17]

    def work(link: Collective) -> tuple[bool, tuple[int, int]]:
        right = True
        for step, rows in enumerate(steps):
            readers = [student for teacher, student in sorted(topology.edges) if teacher == link.me]
            link.publish(payload(link.me, step, rows), readers, at_once=False)
            teachers = topology.teachers_of(link.me)
            tickets = [
                Collective(t, CPU, link.group, {}).publish(payload(t, step, rows), (), at_once=False) for t in teachers
            ]
            received = link.collect(tickets)
            right &= all(same(own, payload(t, step, rows)) for own, t in zip(received, teachers, strict=True))
        return right, link.traffic()

    size = sum(payload(0, 0, rows).num_bytes for rows in steps)
    found = everywhere(topology.students, work)
    for peer, (right, traffic) in zip(topology.students, found, strict=True):
        assert right
        readers = sum(teacher == peer for teacher, _ in topology.edges)
        assert traffic == (size * readers, size * len(topology.teachers_of(peer)))


def test_a_teacher_that_does_not_learn_sends_at_once() -> None:
    def work(link: Collective) -> Any:
        if link.me == 1:
            for step in range(3):
                ticket = link.publish(payload(1, step), (0,), at_once=True)
            link._finish()
            return ticket.num_bytes
        shapes = Collective(1, CPU, link.group, {}).publish(payload(1, 0), (), at_once=False)
        return [same(link.collect([shapes])[0], payload(1, step)) for step in range(3)]

    assert everywhere([0, 1], work) == [[True] * 3, payload(1, 0).num_bytes]


@pytest.mark.parametrize("peers", [2, 3, 5])
def test_the_mean_of_the_others_is_reduced_once_for_all(peers: int) -> None:
    def probabilities(peer: int) -> torch.Tensor:
        return torch.randn(6, 11, generator=torch.Generator().manual_seed(peer)).mul(5).softmax(-1)

    def work(link: Collective) -> tuple[torch.Tensor, tuple[int, int]]:
        own = Payload("mean", {"qa": probabilities(link.me), "lm": torch.empty(0, 11)})
        others = tuple(peer for peer in range(peers) if peer != link.me)
        ticket = link.publish(own, others, at_once=False)
        (mean,) = link.collect([ticket] * (peers - 1))
        assert torch.equal(own.tensors["qa"], probabilities(link.me)), "its own stay what they were"
        assert mean.codec == "mean" and mean.tensors["lm"].shape == (0, 11)
        return mean.tensors["qa"], link.traffic()

    size = probabilities(0).nbytes
    for peer, (mean, traffic) in enumerate(everywhere(range(peers), work)):
        expected = torch.stack([probabilities(other) for other in range(peers) if other != peer]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
        assert (mean >= 0).all()
        assert traffic == (2 * (peers - 1) * size // peers,) * 2


def test_a_partner_that_is_gone_is_an_error_and_not_a_wait() -> None:
    def work(link: Collective) -> Any:
        if link.me == 1:
            return "gone"
        ticket = Collective(1, CPU, link.group, {}).publish(payload(1, 0), (), at_once=False)
        return link.collect([ticket])

    began = time.monotonic()
    error, _ = everywhere([0, 1], work, timeout=2.0)
    assert isinstance(error, PeerLostError)
    assert "student 0: predictions did not get through" in str(error)
    assert time.monotonic() - began < LIMIT


def test_a_partner_that_goes_between_two_steps_is_noticed_as_lost() -> None:
    """Gloo knows of the closed connection by then, and refuses before anything is under way."""
    place = open_meeting_place(HOST)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=one_step_and_gone, args=(place.port,), daemon=True)
    process.start()
    link = Collective(0, CPU, join(Meeting(HOST, place.port, "peers", 0, 2, LIMIT), CPU, HOST), {0: 0, 1: 1})
    theirs = Collective(1, CPU, link.group, {}).publish(payload(1, 0), (), at_once=False)
    link.publish(payload(0, 0), (1,), at_once=False)
    assert same(link.collect([theirs])[0], payload(1, 0))
    process.join(LIMIT)
    link.publish(payload(0, 1), (1,), at_once=False)
    with pytest.raises(PeerLostError, match="student 0: predictions did not get through"):
        link.collect([theirs])


def one_step_and_gone(port: int) -> None:
    """The partner of that test, in a process of its own."""
    link = Collective(1, CPU, join(Meeting(HOST, port, "peers", 1, 2, LIMIT), CPU, HOST), {0: 0, 1: 1})
    theirs = Collective(0, CPU, link.group, {}).publish(payload(0, 0), (), at_once=False)
    link.publish(payload(1, 0), (0,), at_once=False)
    link.collect([theirs])
    os._exit(0)


def test_while_some_only_predict_means_come_one_by_one() -> None:
    """After a loss those ahead predict for those behind: there is no sum over all."""

    def work(link: Collective) -> Any:
        own = Payload("mean", {"qa": torch.full((2, 3), float(link.me))})
        if link.me > 0:
            link.publish(own, (0,), at_once=True)
            link._finish()
            return None
        link.publish(own, (), at_once=False)
        tickets = [
            Collective(peer, CPU, link.group, {}).publish(Payload("mean", {"qa": torch.empty(2, 3)}), (), at_once=False)
            for peer in (1, 2)
        ]
        return [received.tensors["qa"].unique().item() for received in link.collect(tickets)]

    assert everywhere([0, 1, 2], work)[0] == [1.0, 2.0]


def test_members_that_do_not_come_are_named_with_the_place() -> None:
    place = open_meeting_place(HOST)
    with pytest.raises(PeerLostError, match=rf"rank 0 of 2 did not meet the others at {HOST}:{place.port} within 1 s"):
        join(Meeting(HOST, place.port, "peers", 0, 2, 1.0), CPU, HOST)


def test_a_place_that_nobody_keeps_is_said_in_time() -> None:
    place = open_meeting_place(HOST)
    port = place.port
    del place
    began = time.monotonic()
    with pytest.raises(PeerLostError, match="did not meet the others"):
        join(Meeting(HOST, port, "peers", 0, 2, 1.0), CPU, HOST)
    assert time.monotonic() - began < LIMIT
