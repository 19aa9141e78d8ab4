"""Work for the evaluators: a queue, one piece at a time for each, results as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_l4.cluster.rpc import Transport
from ray_l4.errors import PeerError
from ray_l4.monitor.timeline import Timeline

_NAP_SECONDS = 0.02


@dataclass(frozen=True)
class Job:
    """A call to any evaluator, and what to do with its result."""

    name: str
    method: str
    arguments: tuple[Any, ...]
    done: Callable[[Any], None]
    kind: str = "scoring"
    """What the time is spent on, for the timeline."""
    owner: Any = None
    """What it belongs to, for ``drop``."""


@dataclass
class _Running:
    job: Job
    worker: int
    since: float
    dropped: bool = False


class WorkPool:
    """Hands jobs to workers. An evaluator that dies is restarted by Ray, which also repeats the call it was serving."""

    def __init__(self, transport: Transport, workers: Sequence[Any], timeout: float, timeline: Timeline) -> None:
        self._timeline = timeline
        self._transport = transport
        self._workers = workers
        self._timeout = timeout
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, _Running] = {}
        self._idle = list(range(len(workers)))

    def __len__(self) -> int:
        """Jobs that are waiting or running."""
        return len(self._waiting) + len(self._running)

    def add(self, jobs: Sequence[Job], *, urgent: bool = False) -> None:
        """Queue ``jobs``; urgent ones go before all that wait."""
        if urgent:
            self._waiting.extendleft(reversed(jobs))
        else:
            self._waiting.extend(jobs)

    def drop(self, owner: Any) -> None:
        """Forget the jobs of ``owner``: those that run are let run, and what comes of them is nobody's concern."""
        self._waiting = deque(job for job in self._waiting if job.owner != owner)
        for running in self._running.values():
            running.dropped = running.dropped or running.job.owner == owner

    def poll(self) -> None:
        """Take in what has finished and hand out what waits; never blocks on Ray.

        Raises PeerError for a job that failed or has run for longer than the timeout.
        """
        for reference in self._transport.ready(list(self._running)):
            self._finish(reference)
        while self._idle and self._waiting:
            worker, job = self._idle.pop(), self._waiting.popleft()
            since = time.monotonic()  # before the call: in one process it has ended when submit returns
            reference = self._transport.submit(self._workers[worker], job.method, *job.arguments)
            self._running[reference] = _Running(job, worker, since)
        for running in self._running.values():
            if time.monotonic() - running.since > self._timeout:
                raise PeerError(
                    f"evaluator {running.worker}, {running.job.name}: no answer within {self._timeout:g} s "
                    "(timeouts.work in the cluster profile)"
                )

    def wait(self, until: Callable[[], bool], on_nap: Callable[[], None]) -> None:
        """Poll until ``until()``, calling ``on_nap`` between looks. Bounded by the timeout of each job."""
        while True:
            self.poll()
            if until():
                return
            on_nap()
            time.sleep(_NAP_SECONDS)

    def _finish(self, reference: Any) -> None:
        running = self._running.pop(reference)
        self._idle.append(running.worker)
        if running.dropped:
            return
        what = f"evaluator {running.worker}, {running.job.name}"
        result = self._transport.get(reference, self._timeout, what)
        seconds = time.monotonic() - running.since
        self._timeline.add(f"evaluator {running.worker}", running.job.kind, running.job.name, seconds)
        running.job.done(result)
