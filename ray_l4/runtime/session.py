"""A run from the outside: start it, watch it, stop it, get its result. With Ray or without, the same four calls."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.exchange.transports import ObjectStore
from ray_l4.runtime.coordinator import Coordinator
from ray_l4.runtime.crew import Places, local_crew, ray_crew, reserve
from ray_l4.runtime.placement import check_room, local_resources, room_for
from ray_l4.runtime.progress import Snapshot
from ray_l4.runtime.setup import Setup
from ray_l4.store.run_directory import RunDirectory

_CONTROL_TIMEOUT = 30.0
"""Seconds for the coordinator to answer how far it is; it does so from a thread that has nothing else to do."""


_CONNECT_TIMEOUT = 10.0

_STOP_TIMEOUT = 10.0
"""Seconds for the coordinator to leave its loop in order before it is ended; what is on disk is whole either way."""

log = logging.getLogger(__name__)


class Session(Protocol):
    """A run that has been started."""

    def look(self) -> Snapshot: ...

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

    def look(self) -> Snapshot:
        return self._coordinator.progress.look()

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
    def look(self) -> Snapshot:
        return self._coordinator.progress.look()

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
        self._last = Snapshot()
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

    def look(self) -> Snapshot:
        try:
            self._last = ray.get(self._coordinator.look.remote(), timeout=_CONTROL_TIMEOUT)
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


def connect(peers: int, cluster: ClusterConfig) -> None:
    """Join the profile's cluster, or start one on this machine. Raises ClusterError if neither is possible."""
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if cluster.ray.address is None:
        resources = local_resources(cluster)
        check_room(peers, cluster, [resources])
        options |= {
            "num_cpus": int(resources["CPU"]),
            "num_gpus": int(resources["GPU"]),
            "object_store_memory": cluster.ray.object_store_memory,
            "include_dashboard": cluster.ray.dashboard,
            "address": "local",
        }
    else:
        options["address"] = cluster.ray.address
        check_answers(cluster.ray.address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = cluster.ray.address or "this machine"
        raise ClusterError(
            f"ray.address: cannot use a Ray cluster at {where}: {str(error).strip() or type(error).__name__}. "
            "Is it running (ray status), and reachable from here?"
        ) from error
    finally:
        # Ray puts a handler of its own in place, which ends the process where it stands.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def check_cluster(peers: int, cluster: ClusterConfig) -> None:
    """Raise ClusterError if the profile's cluster cannot be joined, or has too little whatever else it is doing.

    Joining a cluster that runs takes a second; reading the data of a run, which comes next, may take minutes.
    """
    if cluster.exchange.transport == "in_process":
        return
    if cluster.ray.address is None:
        check_room(peers, cluster, [local_resources(cluster)])
        return
    joins = not ray.is_initialized()
    if joins:
        connect(peers, cluster)
    try:
        check_room(peers, cluster, node_resources())
    finally:
        if joins:
            ray.shutdown()


def check_answers(address: str) -> None:
    """Raise ClusterError at once if nothing listens there; Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"ray.address: {address} is a Ray Client address; the run directory would be on another machine than the "
            "coordinator that writes it. Start ray-l4 on a node of the cluster with ray.address: auto."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like are looked up by Ray
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ClusterError(
            f"ray.address: nothing answers at {address} ({error.strerror or error}). "
            "Is the cluster running (ray status), and reachable from here?"
        ) from error


def node_resources() -> list[dict[str, float]]:
    """CPUs and GPUs of every living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
