"""Students that learn some steps at a time: actors on Ray, or all in one process of their own without Ray."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Protocol

from ray_l4.bench.isolated_process import IsolatedProcess
from ray_l4.bench.workload import TASK
from ray_l4.cluster.connection import node_resources
from ray_l4.cluster.membership import Membership
from ray_l4.cluster.placement import check_room
from ray_l4.cluster.reservation import reserve
from ray_l4.cluster.rpc import PerRank
from ray_l4.cluster.spawn import LocalSpawner, RaySpawner, Spawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.run.step_loop import StepFigures, StepRules, train_steps
from ray_l4.setup.setup import Setup

_GLANCE = 2e-4
"""Seconds between looks at whether predictions are stored; they are not fetched."""


class BenchStudents(Protocol):
    """Students that learn, and stop in between."""

    peers: int
    steps: int
    """Steps that they have learned so far."""

    def train(self, steps: int) -> list[StepFigures]:
        """Train all of them for the next ``steps`` steps; returns the figures of each step, by peer."""

    def publish_seconds(self, attempts: int) -> list[float]:
        """Measure how long it takes a student to encode its predictions and have them stored for all others.

        Each attempt is the difference of two calls, one that publishes and one that does not.
        """

    def peak_memory(self) -> int:
        """Return the largest memory of any of their processes so far, in bytes."""

    def close(self) -> None:
        """End them."""


class SpawnedStudents:
    """Students that learn the one task of their set-up."""

    def __init__(self, spawner: Spawner, setup: Setup, cluster: ClusterConfig) -> None:
        self.peers = setup.topology.size
        self.steps = 0
        self._setup = setup
        self._cluster = cluster
        self._rpc = spawner.rpc
        self._membership = Membership(spawner, cluster, setup.topology)
        self._membership.await_start()
        fence = self._membership.raise_fence()
        self._membership.form_groups()
        tokens = self._rpc.put(setup.training[TASK])
        self._wait({student.slot: student.begin(fence, 0, tokens) for student in self._membership.students}, "begin")

    def train(self, steps: int) -> list[StepFigures]:
        figures: list[StepFigures] = []
        turn = range(self.steps, self.steps + steps)
        train_steps(
            self._membership.students,
            self._setup.topology,
            self._membership.fence,
            dict.fromkeys(self._setup.topology.students, turn),
            StepRules(self._cluster.exchange.steps_ahead, self._cluster.timeouts.step),
            where=TASK,
            on_step=lambda step, by_peer: figures.append(by_peer),
        )
        self.steps = turn.stop
        return figures

    def publish_seconds(self, attempts: int) -> list[float]:
        others = tuple(range(1, self.peers))
        return [self._seconds_to_predict(others) - self._seconds_to_predict(()) for _ in range(attempts)]

    def peak_memory(self) -> int:
        asked = {student.slot: student.peak_memory() for student in self._membership.students}
        return max(self._wait(asked, "peak_memory"))

    def close(self) -> None:
        """End the students' workers."""
        self._membership.end()

    def _seconds_to_predict(self, readers: tuple[int, ...]) -> float:
        began = time.perf_counter()
        tickets = self._membership.students[0].predict(self._membership.fence, self.steps, 0, readers)
        while len(self._rpc.ready(tickets)) < len(tickets):
            time.sleep(_GLANCE)
        return time.perf_counter() - began

    def _wait(self, asked: dict[int, PerRank[Any]], what: str) -> list[Any]:
        """Wait for a call to all students; returns the first rank's value of each."""
        named = {f"student {slot}, {what}": references for slot, references in asked.items()}
        return [values[0] for values in self._rpc.get_all(named, self._cluster.timeouts.start).values()]


class OnRay(SpawnedStudents):
    """Every student is an actor. Raises ClusterError at once if the cluster has no room for them."""

    def __init__(self, setup: Setup, cluster: ClusterConfig) -> None:
        peers = setup.topology.size
        check_room(peers, cluster, node_resources())
        with ExitStack() as reserved:
            reservation = reserve(peers, peers, cluster)
            reserved.callback(reservation.release)  # which ends whatever runs in it
            super().__init__(RaySpawner(setup, cluster, range(peers), (), reservation), setup, cluster)
            self._reserved = reserved.pop_all()

    def close(self) -> None:
        super().close()
        self._reserved.close()


class OneProcess:
    """All students in a process of their own, so that its memory is theirs."""

    def __init__(self, setup: Setup, cluster: ClusterConfig) -> None:
        self.peers = setup.topology.size
        self.steps = 0
        self._process = IsolatedProcess(_in_this_process, setup, cluster)

    def train(self, steps: int) -> list[StepFigures]:
        self.steps += steps
        return self._process.call("train", steps)

    def publish_seconds(self, attempts: int) -> list[float]:
        return self._process.call("publish_seconds", attempts)

    def peak_memory(self) -> int:
        return self._process.call("peak_memory")

    def close(self) -> None:
        self._process.close()


def _in_this_process(setup: Setup, cluster: ClusterConfig) -> SpawnedStudents:
    return SpawnedStudents(LocalSpawner(setup, cluster, range(setup.topology.size)), setup, cluster)
