"""A run from the outside: start it, watch it, stop it, get its result; the same with and without Ray."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, OutOfDiskError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_l4.cluster.connection import connect, node_resources
from ray_l4.cluster.placement import room_for
from ray_l4.cluster.reservation import Reservation, reserve
from ray_l4.cluster.rpc import RayRpc, get
from ray_l4.cluster.spawn import LocalSpawner, RaySpawner
from ray_l4.cluster.temporary_folder import full_temporary_folder
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.monitor.progress import ProgressSnapshot
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import most_slots
from ray_l4.store.run_directory import RunDirectory

_CONTROL_TIMEOUT = 30.0
"""Seconds for the coordinator to answer ``snapshot``, for which it has a separate thread."""

_STOP_TIMEOUT = 10.0
"""Seconds for the coordinator to stop by itself before it is killed; the files on disk are whole either way."""

log = logging.getLogger(__name__)


class Session(Protocol):
    """A run, from its start to its end."""

    def begin(self) -> None:
        """Start the run. Raises ClusterError if there is no room."""

    def snapshot(self) -> ProgressSnapshot:
        """Return a snapshot of the run's progress."""

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the run to end, and return whether it has ended."""

    def result(self) -> dict[str, Any]:
        """Return the summary of a run that has ended, or raise the error that ended it."""

    def close(self) -> None:
        """Stop the run if it has not ended, and end every process that was started for it, however far it got."""


def open_session(setup: Setup, cluster: ClusterConfig, directory: RunDirectory) -> Session:
    """Return the session of a new run, or of a resumed one without its lost students. It has not begun yet."""
    return (LocalSession if cluster.in_one_process else RaySession)(setup, cluster, directory)


def start(setup: Setup, cluster: ClusterConfig, directory: RunDirectory) -> Session:
    """Open a session and begin it. Raises ClusterError if there is no room."""
    session = open_session(setup, cluster, directory)
    session.begin()
    return session


class LocalSession:
    """The whole run in a thread of this process."""

    def __init__(self, setup: Setup, cluster: ClusterConfig, directory: RunDirectory) -> None:
        self._coordinator = Coordinator(new_context(setup, cluster, directory), LocalSpawner, setup.topology.size)
        self._summary: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="run", daemon=True)
        self._begun = False
        # Not Thread.join: after a KeyboardInterrupt in it, Python 3.11 takes a running thread for ended. Python would
        # then end that thread by force, and if that happens within PyTorch's code, the whole process aborts.
        self._ended = threading.Event()

    def begin(self) -> None:
        self._begun = True
        self._thread.start()

    def snapshot(self) -> ProgressSnapshot:
        return self._coordinator.progress.snapshot()

    def wait(self, seconds: float) -> bool:
        return self._ended.wait(seconds)

    def result(self) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        return self._summary

    def close(self) -> None:
        self._coordinator.stop()
        if self._begun and not self._ended.wait(_CONTROL_TIMEOUT):
            log.warning("the run did not stop within %g s and is abandoned in the middle of a step", _CONTROL_TIMEOUT)

    def _work(self) -> None:
        try:
            self._summary = self._coordinator.run()
        except BaseException as error:  # ``result`` raises it in the caller's thread, whatever it is
            self._error = error
        finally:
            self._ended.set()


class CoordinatorActor:
    """The coordinator as an actor: ``snapshot`` and ``stop`` answer at once while ``run`` is at work.

    An error of its constructor is raised by ``run``: of an actor that cannot be created, Ray keeps only the text.
    """

    def __init__(self, setup: Setup, cluster: ClusterConfig, directory: Path, reservation: Reservation) -> None:
        self._failure: Exception | None = None
        try:
            make_spawner = partial(RaySpawner, reservation=reservation)
            context = new_context(setup, cluster, RunDirectory.open(directory))
            self._coordinator = Coordinator(context, make_spawner, reservation.students)
        except Exception as error:
            self._failure = error

    def run(self) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        return self._coordinator.run()

    @ray.method(concurrency_group="control")
    def snapshot(self) -> ProgressSnapshot:
        return ProgressSnapshot() if self._failure is not None else self._coordinator.progress.snapshot()

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        if self._failure is None:
            self._coordinator.stop()


class RaySession:
    """The run on a Ray cluster: an existing one, or one on this machine that ends with the run."""

    def __init__(self, setup: Setup, cluster: ClusterConfig, directory: RunDirectory) -> None:
        self._given = (setup, cluster, directory)
        self._started = ExitStack()
        self._coordinator: Any = None
        self._running: Any = None
        self._last = ProgressSnapshot()

    def begin(self) -> None:
        setup, cluster, directory = self._given
        students = len(setup.topology.without(directory.state().lost_students).present)
        with ExitStack() as started:
            if not ray.is_initialized():
                connect(students, cluster)
                started.callback(_shut_down)
            most = room_for(students, most_slots(setup, students), cluster, node_resources())
            reservation = reserve(students, most, cluster)
            started.callback(reservation.release)
            # The coordinator writes the run directory, so it must run on the node of this process.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor = ray.remote(num_cpus=0, concurrency_groups={"control": 2})(CoordinatorActor)
            try:
                shared = ray.put(setup)
            except OutOfDiskError as error:
                raise ClusterError(f"ray: no room for the data: {full_temporary_folder()}.") from error
            self._coordinator = actor.options(scheduling_strategy=here).remote(
                shared, cluster, directory.path.resolve(), reservation
            )
            started.callback(ray.kill, self._coordinator)  # Ray ends its students and evaluators with it
            self._running = self._coordinator.run.remote()
            self._started = started.pop_all()

    def snapshot(self) -> ProgressSnapshot:
        try:
            self._last = ray.get(self._coordinator.snapshot.remote(), timeout=_CONTROL_TIMEOUT)
        except (GetTimeoutError, RayError):
            # It is still starting, or has died, which ``result`` reports.
            return self._last
        return self._last

    def wait(self, seconds: float) -> bool:
        done, _ = ray.wait([self._running], timeout=seconds)
        return bool(done)

    def result(self) -> dict[str, Any]:
        return get(RayRpc(), self._running, _CONTROL_TIMEOUT, "coordinator")

    def close(self) -> None:
        with self._started.pop_all():
            if self._running is not None and ray.is_initialized():
                self._coordinator.stop.remote()
                if not self.wait(_STOP_TIMEOUT):
                    log.warning("the coordinator did not stop within %g s and is killed", _STOP_TIMEOUT)


def _shut_down() -> None:
    if ray.is_initialized():
        ray.shutdown()
