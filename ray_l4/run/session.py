"""A run from the outside: start it, watch it, stop it, get its result; the same with and without Ray."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError

from ray_l4.cluster.connection import Connection, check_session, node_resources
from ray_l4.cluster.placement import room_for
from ray_l4.cluster.reservation import reserve
from ray_l4.cluster.rpc import RayRpc, get
from ray_l4.cluster.session_watch import SessionWatch
from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.cluster.temporary_folder import full_temporary_folder
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, RayL4Error, SessionLostError, first_line
from ray_l4.monitor.live_view import headline
from ray_l4.monitor.progress import ProgressSnapshot
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.run.coordinator_process import CoordinatorProcess
from ray_l4.run.restart_budget import RestartBudget, progress_on_disk
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import most_slots
from ray_l4.store.run_directory import RunDirectory

_CONTROL_TIMEOUT = 30.0
"""Seconds for the result of a run that has ended to arrive."""

_ANSWER_TIMEOUT = 1.0
"""Seconds to wait for the coordinator's answer before the last one is shown again."""

_LOOK_INTERVAL = 0.5
"""Seconds between two questions whether the coordinator is alive."""

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


def open_session(
    setup: Setup, cluster: ClusterConfig, directory: RunDirectory, connection: Connection | None = None
) -> Session:
    """Return the session of a new run, or of a resumed one without its lost students. It has not begun yet.

    ``connection``: one to the cluster that has been begun; it ends with the session.
    """
    if cluster.in_one_process:
        return LocalSession(setup, cluster, directory)
    return RaySession(setup, cluster, directory, connection)


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
        self._limit = cluster.timeouts.stop
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
        if self._begun and not self._ended.wait(self._limit):
            log.warning("the run did not stop within %g s and is abandoned in the middle of a step", self._limit)

    def _work(self) -> None:
        try:
            self._summary = self._coordinator.run()
        except BaseException as error:  # ``result`` raises it in the caller's thread, whatever it is
            self._error = error
        finally:
            self._ended.set()


class RaySession:
    """The run on a Ray cluster: an existing one, or one on this machine that ends with the run.

    A coordinator that dies or does not answer is replaced by one that goes on from what is on disk. The old one is
    ended before the new one starts, so no two of them ever write.
    """

    def __init__(
        self, setup: Setup, cluster: ClusterConfig, directory: RunDirectory, connection: Connection | None = None
    ) -> None:
        """``connection``: see ``open_session``."""
        self._given = (setup, cluster, directory)
        self._connection = connection
        self._started = ExitStack()
        self._start: Callable[[], CoordinatorProcess] | None = None
        self._coordinator: CoordinatorProcess | None = None
        self._last = ProgressSnapshot()
        self._earlier: list[str] = []
        self._budget = RestartBudget(cluster.restarts.most, cluster.restarts.backoff)
        self._failure: RayL4Error | None = None
        self._watch: SessionWatch | None = None

    def begin(self) -> None:
        setup, cluster, directory = self._given
        students = len(setup.topology.without(directory.state().lost_students).present)
        with ExitStack() as started:
            self._connection = self._connection or Connection(students, cluster)
            started.callback(self._connection.close)
            self._connection.wait()
            self._watch = SessionWatch(cluster.timeouts.control, self._end_process)
            started.callback(self._watch.close)
            try:
                most = room_for(students, most_slots(setup, students), cluster, node_resources())
                reservation = reserve(students, most, cluster)
                started.callback(reservation.release)
                shared = ray.put(setup)
                self._start = partial(CoordinatorProcess, shared, cluster, directory, reservation)
                self._coordinator = self._start()
            except OutOfDiskError as error:
                raise ClusterError(f"ray: no room for the data: {full_temporary_folder()}.") from error
            except ObjectStoreFullError as error:
                raise ClusterError(
                    "ray: the object store has no room for the data. Give it more: ray.object_store_memory."
                ) from error
            except (RayError, ConnectionError) as error:
                raise SessionLostError(f"ray: the cluster was lost at the start: {first_line(error)}") from error
            started.callback(self._end_coordinator)
            self._started = started.pop_all()

    def snapshot(self) -> ProgressSnapshot:
        answer = None if self._coordinator is None else self._coordinator.ask(_ANSWER_TIMEOUT)
        if answer is not None:
            self._last = replace(answer, events=[*self._earlier, *answer.events])
        return self._last  # of before, while it starts or does not answer

    def wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._failure is None and self._coordinator is not None:
            if self._coordinator.wait(max(min(deadline - time.monotonic(), _LOOK_INTERVAL), 0.0)):
                how = self._coordinator.death()
                if how is None:
                    return True
            else:
                self.snapshot()
                silence = self._coordinator.silence()
                how = None if silence is None else f"has not answered for {silence:.0f} s (timeouts.control)"
            lost = None if self._watch is None else self._watch.loss()
            if lost is not None:
                self._failure = self._unrecovered(f"out of reach, last seen in {headline(self._last)}", lost)
            elif how is not None:
                self._replace_coordinator(how)
            if time.monotonic() >= deadline:
                return self._failure is not None
        return True

    def result(self) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        assert self._coordinator is not None, "the run has not begun"
        return get(RayRpc(), self._coordinator.running, _CONTROL_TIMEOUT, "coordinator")

    def close(self) -> None:
        limit = self._given[1].timeouts.stop
        with self._started.pop_all() as started:
            if self._session_is_lost():
                started.pop_all()  # calls would wait for ever; all of it ends with this process
                if self._connection is not None:
                    self._connection.abandon()
                return
            if self._coordinator is not None and self._failure is None and ray.is_initialized():
                self._coordinator.stop()
                if not self._coordinator.wait(limit):
                    log.warning("the coordinator did not stop within %g s (timeouts.stop) and is killed", limit)

    def _replace_coordinator(self, how: str) -> None:
        """End the coordinator and start another one on the run directory; keep the error if that is not possible."""
        assert self._start is not None and self._coordinator is not None
        directory, where = self._given[2], headline(self._last)
        try:
            check_session()
            self._coordinator.kill()
            wait = self._budget.spend(progress_on_disk(directory.path))
            time.sleep(wait)
            self._coordinator = self._start()
        except RayL4Error as error:
            self._failure = self._unrecovered(f"it {how}, last seen in {where}; it could not be replaced", error)
            return
        line = f"the coordinator {how}, last seen in {where}; another one goes on from what is on disk"
        log.warning("%s", line)
        self._earlier = [*self._last.events, line]
        self._last = replace(self._last, events=self._earlier)

    def _unrecovered(self, what: str, cause: RayL4Error) -> RayL4Error:
        """Return the error that ends the run, with its cause and its exit code."""
        kind = SessionLostError if isinstance(cause, SessionLostError) else ClusterError
        failure = kind(
            f"coordinator: {what}: {cause}. What is on disk is kept. To continue: ray-l4 resume {self._given[2].path}"
        )
        failure.exit_code = cause.exit_code
        return failure

    def _session_is_lost(self) -> bool:
        if isinstance(self._failure, SessionLostError):
            return True
        return self._watch is not None and self._watch.loss() is not None

    def _end_process(self, loss: SessionLostError) -> None:
        """End this process, whose main thread waits for a Ray session that will not answer."""
        failure = self._unrecovered(f"out of reach, last seen in {headline(self._last)}", loss)
        os.write(2, f"error: {failure}\n".encode())  # not through Python's streams, which may be in use
        os._exit(failure.exit_code)

    def _end_coordinator(self) -> None:
        if self._coordinator is not None and ray.is_initialized():
            self._coordinator.kill()
