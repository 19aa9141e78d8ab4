"""A run from the outside: start it, watch it, stop it, get its result. With Ray or without, the same four calls."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_l4.cluster.connection import connect, node_resources
from ray_l4.cluster.placement import room_for
from ray_l4.cluster.rpc import ObjectStore
from ray_l4.cluster.spawn import Places, local_crew, ray_crew, reserve
from ray_l4.config.cluster import ClusterConfig
from ray_l4.monitor.progress import ProgressSnapshot
from ray_l4.run.coordinator import Coordinator
from ray_l4.setup.setup import Setup
from ray_l4.store.run_directory import RunDirectory

_CONTROL_TIMEOUT = 30.0
"""Seconds for the coordinator to answer how far it is; it does so from a thread that has nothing else to do."""


_STOP_TIMEOUT = 10.0
"""Seconds for the coordinator to leave its loop in order before it is ended; what is on disk is whole either way."""

log = logging.getLogger(__name__)


class Session(Protocol):
    """A run that has been started."""

    def snapshot(self) -> ProgressSnapshot: ...

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds``; whether the run has ended."""

    def result(self) -> dict[str, Any]:
        """The summary of a run that has ended. Raises what ended it otherwise."""

    def close(self) -> None:
        """Stop the run if it goes on, and every process that was started for it."""


def start(setup: Setup, cluster: ClusterConfig, run: RunDirectory) -> Session:
    """Start a run, or go on with one, without the students it has lost. Raises ClusterError if there is no room."""
    lost = run.state().lost_students
    if lost:
        setup = replace(setup, topology=setup.topology.without(lost))
    if cluster.exchange.transport == "in_process":
        return LocalSession(setup, cluster, run)
    return RaySession(setup, cluster, run)


class LocalSession:
    """The whole run in a thread of this process."""

    def __init__(self, setup: Setup, cluster: ClusterConfig, run: RunDirectory) -> None:
        self._coordinator = Coordinator(setup, cluster, run, local_crew, setup.topology.size)
        self._summary: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="run", daemon=True)
        self._thread.start()

    def snapshot(self) -> ProgressSnapshot:
        return self._coordinator.progress.snapshot()

    def wait(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        return self._summary

    def close(self) -> None:
        self._coordinator.stop()
        self._thread.join(_CONTROL_TIMEOUT)

    def _work(self) -> None:
        try:
            self._summary = self._coordinator.run()
        except BaseException as error:  # handed to whoever asks for the result, whatever it is
            self._error = error


class CoordinatorActor:
    """The coordinator as an actor: ``run`` takes as long as the run, ``look`` and ``stop`` answer meanwhile."""

    def __init__(self, setup: Setup, cluster: ClusterConfig, run: Path, places: Places) -> None:
        hire = partial(ray_crew, places=places)
        self._coordinator = Coordinator(setup, cluster, RunDirectory.open(run), hire, places.students)

    def run(self) -> dict[str, Any]:
        return self._coordinator.run()

    @ray.method(concurrency_group="control")
    def snapshot(self) -> ProgressSnapshot:
        return self._coordinator.progress.snapshot()

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        self._coordinator.stop()


class RaySession:
    """The run on a Ray cluster: one that is there, or one of this machine that ends with the run."""

    def __init__(self, setup: Setup, cluster: ClusterConfig, run: RunDirectory) -> None:
        self._transport = ObjectStore()
        self._coordinator: Any = None
        self._running: Any = None
        self._places: Places | None = None
        self._last = ProgressSnapshot()
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            connect(len(setup.topology.left), cluster)
        try:
            least = len(setup.topology.left)
            self._places = reserve(least, room_for(least, setup.most_students, cluster, node_resources()), cluster)
            # It writes the run directory, so it lives where the directory is: on the node of this process.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor = ray.remote(num_cpus=0, concurrency_groups={"control": 2})(CoordinatorActor)
            placed = actor.options(scheduling_strategy=here)
            self._coordinator = placed.remote(ray.put(setup), cluster, run.path.resolve(), self._places)
            self._running = self._coordinator.run.remote()
        except BaseException:
            self.close()
            raise

    def snapshot(self) -> ProgressSnapshot:
        try:
            self._last = ray.get(self._coordinator.snapshot.remote(), timeout=_CONTROL_TIMEOUT)
        except (GetTimeoutError, RayError):
            # Still starting, or gone: the first shows soon, the second is for result() to tell.
            return self._last
        return self._last

    def wait(self, seconds: float) -> bool:
        done, _ = ray.wait([self._running], timeout=seconds)
        return bool(done)

    def result(self) -> dict[str, Any]:
        return self._transport.get(self._running, _CONTROL_TIMEOUT, "coordinator")

    def close(self) -> None:
        if self._coordinator is not None:
            # Students and evaluators belong to the coordinator and go when it goes.
            self._coordinator.stop.remote()
            if self._running is not None and not self.wait(_STOP_TIMEOUT):
                log.warning("the coordinator did not stop within %g s and is ended", _STOP_TIMEOUT)
            ray.kill(self._coordinator)
            self._coordinator = None
        if self._places is not None:
            self._places.give_back()
            self._places = None
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()
