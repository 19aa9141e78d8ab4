"""What a pulse tells of real processes: busy in native code, stuck in native code, stopped, dead."""

from __future__ import annotations

import ctypes
import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
import ray

from ray_l4.cluster.actors import actor_class
from ray_l4.cluster.pulses import Pulse
from ray_l4.cluster.rpc import RayRpc, get
from ray_l4.errors import PeerLostError

LIMIT = 3.0


class Calls(Protocol):
    """An interface."""

    def ready(self) -> int: ...

    def compute(self, seconds: float) -> str: ...

    def hang(self, seconds: int) -> None: ...


class Worker:
    """Spends time in native code, without Python's lock or with it."""

    def __str__(self) -> str:
        return "student 1, stage 2, step 130"

    def ready(self) -> int:
        return os.getpid()

    def compute(self, seconds: float) -> str:
        time.sleep(seconds)  # without the lock, as an operator of PyTorch
        return "done"

    def hang(self, seconds: int) -> None:
        ctypes.PyDLL(None).sleep(seconds)  # PyDLL keeps the lock, as code that is stuck in an extension


@pytest.fixture
def pair(ray_cluster: None) -> Iterator[tuple[RayRpc, list[Any], list[int]]]:
    """Two workers of one team that are ready, and their processes."""
    rpc = RayRpc()
    actor = ray.remote(num_cpus=0)(actor_class(Calls, "tests.cluster.test_cluster_pulses_ray:Worker"))
    workers = []
    for number in range(2):
        pulse = Pulse(f"test {number}/{uuid.uuid4().hex}", LIMIT)
        workers.append(actor.remote(pulse=(pulse.name, pulse.limit)))
        rpc.pulses.watch(workers[-1], f"student {number}", pulse, "students")
    pids = [get(rpc, rpc.call(worker, Calls.ready), 60.0, "ready") for worker in workers]
    yield rpc, workers, pids
    for worker in workers:
        rpc.end(worker)


def test_one_that_computes_in_native_code_for_longer_than_the_limit_is_well(
    pair: tuple[RayRpc, list[Any], list[int]],
) -> None:
    rpc, workers, _ = pair
    assert get(rpc, rpc.call(workers[0], Calls.compute, 2.5 * LIMIT), 60.0, "work") == "done"


def test_one_that_is_stopped_for_less_than_the_limit_is_well(pair: tuple[RayRpc, list[Any], list[int]]) -> None:
    rpc, workers, pids = pair
    answer = rpc.call(workers[0], Calls.compute, 2 * LIMIT)
    os.kill(pids[0], signal.SIGSTOP)
    time.sleep(LIMIT / 3)
    os.kill(pids[0], signal.SIGCONT)
    assert get(rpc, answer, 60.0, "work") == "done"


@pytest.mark.parametrize("how", ["stopped", "stuck in native code"])
def test_one_that_hangs_is_noticed_whoever_is_waited_for(how: str, pair: tuple[RayRpc, list[Any], list[int]]) -> None:
    rpc, workers, pids = pair
    time.sleep(LIMIT / 3)  # some beats after it has started
    rpc.call(workers[1], Calls.hang, 60) if how != "stopped" else os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(PeerLostError) as caught:
        get(rpc, rpc.call(workers[0], Calls.compute, 40.0), 60.0, "student 0, stage 2, step 131, figures")
    assert time.monotonic() - began < 20.0, "about the limit, and not when the answer comes or is late"
    told = str(caught.value)
    assert told.startswith("student 1: no sign of life for 3 s (timeouts.control); last span: ")
    assert " (student 1, stage 2, step 130), " in told
    assert told.endswith("; awaited: student 0, stage 2, step 131, figures")
    assert rpc.silence(workers[0]) is None and rpc.silence(workers[1]) is not None


def test_the_error_of_one_that_dies_or_is_late_says_where_it_was(pair: tuple[RayRpc, list[Any], list[int]]) -> None:
    rpc, workers, pids = pair
    answers = [rpc.call(worker, Calls.compute, 30.0) for worker in workers]
    with pytest.raises(PeerLostError, match=r"^student 0, work: no answer within 1 s .*; last span: compute \(stud"):
        get(rpc, answers[0], 1.0, "student 0, work")
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(
        PeerLostError,
        match=r"^student 1, work: .* died .*; last span: compute \(student 1, stage 2, step 130\), \d+ s ago$",
    ):
        get(rpc, answers[1], 30.0, "student 1, work")
