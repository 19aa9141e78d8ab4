"""A queue of jobs for the evaluators, which take one job at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray_l4.cluster.handles import EvaluatorHandle
from ray_l4.cluster.rpc import Ref, Rpc, get
from ray_l4.errors import PeerError
from ray_l4.monitor.timeline import Timeline

_NAP_SECONDS = 0.02

T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[T]):
    """A call to any evaluator, and the function that takes its result."""

    name: str
    call: Callable[[EvaluatorHandle], Ref[T]]
    done: Callable[[T], None]
    kind: str = "scoring"
    """The kind of work, for the timeline."""
    owner: Any = None
    """The key by which ``drop`` finds the job."""


@dataclass
class _Running:
    job: Job[Any]
    evaluator: int
    since: float
    dropped: bool = False


class WorkQueue:
    """Hands jobs to evaluators. Ray restarts an evaluator that dies, and repeats the call that it was serving."""

    def __init__(self, rpc: Rpc, evaluators: Sequence[EvaluatorHandle], timeout: float, timeline: Timeline) -> None:
        """``timeout``: seconds that one job may take."""
        self._rpc = rpc
        self._evaluators = evaluators
        self._timeout = timeout
        self._timeline = timeline
        self._waiting: deque[Job[Any]] = deque()
        self._running: dict[Ref[Any], _Running] = {}
        self._idle = list(range(len(evaluators)))

    def __len__(self) -> int:
        """Return the number of jobs that are waiting or running."""
        return len(self._waiting) + len(self._running)

    def add(self, jobs: Sequence[Job[Any]], *, urgent: bool = False) -> None:
        """Queue ``jobs``; urgent ones go before all waiting jobs."""
        if urgent:
            self._waiting.extendleft(reversed(jobs))
        else:
            self._waiting.extend(jobs)

    def drop(self, owner: Any) -> None:
        """Remove the jobs of ``owner``. Running ones go on, but their results are ignored."""
        self._waiting = deque(job for job in self._waiting if job.owner != owner)
        for running in self._running.values():
            running.dropped = running.dropped or running.job.owner == owner

    def poll(self) -> None:
        """Process the results that have arrived and hand out waiting jobs, without blocking on Ray.

        Raises PeerError for a job that failed or has run for longer than the timeout.
        """
        for reference in self._rpc.ready(list(self._running)):
            self._finish(reference)
        while self._idle and self._waiting:
            evaluator, job = self._idle.pop(), self._waiting.popleft()
            since = time.monotonic()  # before the call: in one process the job has run when the call returns
            self._running[job.call(self._evaluators[evaluator])] = _Running(job, evaluator, since)
        for running in self._running.values():
            if time.monotonic() - running.since > self._timeout:
                raise PeerError(
                    f"evaluator {running.evaluator}, {running.job.name}: no answer within {self._timeout:g} s "
                    "(timeouts.work in the cluster profile)"
                )

    def wait(self, until: Callable[[], bool], on_nap: Callable[[], None]) -> None:
        """Poll until ``until()`` is true, calling ``on_nap`` in between. The timeout of each job bounds the wait."""
        while True:
            self.poll()
            if until():
                return
            on_nap()
            time.sleep(_NAP_SECONDS)

    def _finish(self, reference: Ref[Any]) -> None:
        running = self._running.pop(reference)
        self._idle.append(running.evaluator)
        if running.dropped:
            return
        result = get(self._rpc, reference, self._timeout, f"evaluator {running.evaluator}, {running.job.name}")
        seconds = time.monotonic() - running.since
        self._timeline.add(f"evaluator {running.evaluator}", running.job.kind, running.job.name, seconds)
        running.job.done(result)
