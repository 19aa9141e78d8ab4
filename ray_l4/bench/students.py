"""Students at work, some steps at a time: as actors on Ray, or all of them in one fresh process without Ray."""

from __future__ import annotations

import time
from typing import Any, Protocol

from ray_l4.bench.isolated_process import IsolatedProcess
from ray_l4.bench.workload import TASK
from ray_l4.cluster.connection import node_resources
from ray_l4.cluster.placement import check_room
from ray_l4.cluster.spawn import Places, Workers, local_crew, meet, ray_crew, reserve
from ray_l4.config.cluster import ClusterConfig
from ray_l4.run.step_loop import StepFigures, train_steps
from ray_l4.setup.setup import Setup

_GENERATION = 1
_GLANCE = 2e-4
"""Seconds between looks at whether predictions are stored; they are not fetched."""


class BenchStudents(Protocol):
    """Students that learn, and stop in between."""

    peers: int
    steps: int
    """They have learned so far."""

    def train(self, steps: int) -> list[StepFigures]:
        """Let all of them learn the next ``steps`` steps; the figures of each step, by peer."""

    def publish_seconds(self, attempts: int) -> list[float]:
        """How long it takes a student to encode its predictions and have them stored for all others: each time the
        difference of two calls, one that publishes and one that does not."""

    def peak_memory(self) -> int:
        """Bytes: the largest memory of any of their processes so far."""

    def close(self) -> None:
        """End them."""


class _Students:
    """A crew that learns the one task of its setup."""

    def __init__(self, crew: Workers, setup: Setup, cluster: ClusterConfig) -> None:
        self.peers = setup.topology.size
        self.crew = crew
        self._setup = setup
        self._cluster = cluster
        self.steps = 0
        meet(crew, cluster, _GENERATION, range(len(crew.students)))
        self._call("begin", _GENERATION, 0, setup.training[TASK])

    def train(self, steps: int) -> list[StepFigures]:
        figures: list[StepFigures] = []
        turn = range(self.steps, self.steps + steps)
        train_steps(
            self.crew.transport,
            self.crew.students,
            self._setup.topology,
            _GENERATION,
            dict.fromkeys(self._setup.topology.students, turn),
            steps_ahead=self._cluster.exchange.steps_ahead,
            timeout=self._cluster.timeouts.step,
            where=TASK,
            on_step=lambda step, by_peer: figures.append(by_peer),
        )
        self.steps = turn.stop
        return figures

    def publish_seconds(self, attempts: int) -> list[float]:
        others = tuple(range(1, len(self.crew.students)))
        return [self._seconds_to_predict(others) - self._seconds_to_predict(()) for _ in range(attempts)]

    def peak_memory(self) -> int:
        return max(self._call("peak_memory"))

    def _seconds_to_predict(self, readers: tuple[int, ...]) -> float:
        transport, first = self.crew.transport, self.crew.students[0]
        began = time.perf_counter()
        ticket = transport.submit(first, "predict", _GENERATION, self.steps, 0, readers)
        while not transport.ready([ticket]):
            time.sleep(_GLANCE)
        return time.perf_counter() - began

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        """Of all students, at the same time."""
        transport = self.crew.transport
        asked = [transport.submit(student, method, *arguments) for student in self.crew.students]
        return transport.get_all(asked, self._cluster.timeouts.start, f"students, {method}")


class OnRay(_Students):
    """Every student an actor. Raises ClusterError at once if the cluster has no room for them."""

    def __init__(self, setup: Setup, cluster: ClusterConfig) -> None:
        peers = setup.topology.size
        check_room(peers, cluster, node_resources())
        self._places: Places = reserve(peers, peers, cluster)
        try:
            super().__init__(ray_crew(setup, cluster, range(peers), self._places), setup, cluster)
        except BaseException:
            self._places.give_back()  # what runs in them ends with them
            raise

    def close(self) -> None:
        self.crew.dismiss()
        self._places.give_back()


class OneProcess:
    """All students in a process of their own, so that its memory is theirs."""

    def __init__(self, setup: Setup, cluster: ClusterConfig) -> None:
        self.peers = setup.topology.size
        self.steps = 0
        self._process = IsolatedProcess(_of_one_process, setup, cluster)

    def train(self, steps: int) -> list[StepFigures]:
        self.steps += steps
        return self._process.call("train", steps)

    def publish_seconds(self, attempts: int) -> list[float]:
        return self._process.call("publish_seconds", attempts)

    def peak_memory(self) -> int:
        return self._process.call("peak_memory")

    def close(self) -> None:
        self._process.close()


def _of_one_process(setup: Setup, cluster: ClusterConfig) -> _Students:
    return _Students(local_crew(setup, cluster, range(setup.topology.size)), setup, cluster)
