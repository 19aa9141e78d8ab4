"""The coordinator in a process of its own: an actor, how it is asked, and how it is ended for certain."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_l4.cluster.reservation import Reservation
from ray_l4.cluster.spawn import RaySpawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.monitor.progress import ProgressSnapshot
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.setup.setup import Setup
from ray_l4.store.run_directory import RunDirectory

_END_TIMEOUT = 30.0
"""Seconds for a process to disappear."""

_GRACE = 2.0
"""Seconds for a process to go by itself after Ray was told to end it, before SIGKILL."""


class CoordinatorActor:
    """The coordinator as an actor: ``snapshot`` and ``stop`` answer at once while ``run`` is at work.

    An error of its constructor is raised by ``run``: of an actor that cannot be created, Ray keeps only the text.
    """

    def __init__(self, setup: Setup, cluster: ClusterConfig, directory: Path, reservation: Reservation) -> None:
        self._failure: Exception | None = None
        self._writing = ExitStack()
        try:
            make_spawner = partial(RaySpawner, reservation=reservation)
            run = RunDirectory.open(directory)
            self._writing.enter_context(run.writing())
            context = new_context(setup, cluster, run)
            self._coordinator = Coordinator(context, make_spawner, reservation.students)
        except Exception as error:
            self._failure = error

    def run(self) -> dict[str, Any]:
        with self._writing:
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


class CoordinatorProcess:
    """One coordinator actor on the node of this process, as the command sees it."""

    def __init__(self, setup: Any, cluster: ClusterConfig, directory: RunDirectory, reservation: Reservation) -> None:
        """Start it, without waiting. ``setup``: reference to the setup in the object store."""
        # The coordinator writes the run directory, so it must run on the node of this process.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, concurrency_groups={"control": 2})(CoordinatorActor)
        self._actor = actor.options(scheduling_strategy=here).remote(
            setup, cluster, directory.path.resolve(), reservation
        )
        self.running = self._actor.run.remote()
        self._limits = cluster.timeouts
        self._has_answered = False
        self._question: Any = None
        self._asked_at = 0.0

    def ask(self, seconds: float) -> ProgressSnapshot | None:
        """Return its progress; None if it does not answer within ``seconds``, or has died."""
        deadline = time.monotonic() + seconds
        while True:
            late = self._question is not None  # the answer to an earlier question is out of date
            if not late:
                self._question, self._asked_at = self._actor.snapshot.remote(), time.monotonic()
            try:
                answer: ProgressSnapshot = ray.get(self._question, timeout=max(deadline - time.monotonic(), 0.0))
            except GetTimeoutError:
                return None
            except RayError:
                self._question = None
                return None
            self._question, self._has_answered = None, True
            if not late or time.monotonic() > deadline:
                return answer

    def silence(self) -> float | None:
        """Return for how many seconds it has not answered, if that is too long; a process that starts has more time."""
        limit = self._limits.control if self._has_answered else max(self._limits.start, self._limits.control)
        waited = time.monotonic() - self._asked_at
        return waited if self._question is not None and waited > limit else None

    def death(self) -> str | None:
        """Return how its process died, once ``running`` has a result; None if ``run`` itself returned or raised."""
        try:
            ray.get(self.running, timeout=self._limits.control)
        except RayTaskError:
            return None
        except OutOfMemoryError:
            return "was killed because its machine ran out of memory"
        except RayActorError as error:
            return None if error.actor_init_failed else "died"
        except RayError:
            return None
        return None

    def stop(self) -> None:
        """Ask the run to end at the next step."""
        self._actor.stop.remote()

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for ``run`` to end, and return whether it has ended."""
        done, _ = ray.wait([self.running], timeout=seconds)
        return bool(done)

    def kill(self) -> None:
        """End its process, also a stopped one, and return when it is gone: until then it could write.

        Ray ends its students and evaluators with it. Raises ClusterError if the process does not go.
        """
        pid = self._pid()
        with suppress(RayError, ValueError):  # Ray knows already that it has died
            ray.kill(self._actor)
        began = time.monotonic()
        while pid is not None and _is_coordinator(pid):
            waited = time.monotonic() - began
            if waited > _END_TIMEOUT:
                raise ClusterError(
                    f"coordinator: its process {pid} is still there {_END_TIMEOUT:g} s after SIGKILL, so no other one "
                    "may go on in its place. Resume the run once the process is gone."
                )
            if waited > _GRACE:  # at once, Ray would tell the user of a worker that died unexpectedly
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _pid(self) -> int | None:
        """Return the process as Ray's records have it, which need no answer of the process; None before it starts."""
        record = ray._private.state.actors(self._actor._actor_id.hex())
        return int(record.get("Pid", 0)) or None


def _is_coordinator(pid: int) -> bool:
    """Return whether the process is there, is no zombie, and is not another one that got the number meanwhile."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return title.startswith(b"ray::CoordinatorActor")
