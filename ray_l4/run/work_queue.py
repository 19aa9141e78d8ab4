"""A queue of jobs for the evaluators, which take one job at a time."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ray_l4.cluster.evaluators import MOST_DEATHS, Evaluators
from ray_l4.cluster.handles import EvaluatorHandle
from ray_l4.cluster.rpc import Ref, Rpc, get
from ray_l4.errors import DependencyLostError, PeerError, PeerLostError
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
class _Task:
    """A job, and what happened to it so far."""

    job: Job[Any]
    deaths: int = 0
    """Evaluators that died or hung while they served it."""
    late: bool = False
    """Whether it has taken longer than the timeout once."""


@dataclass
class _Running:
    task: _Task
    evaluator: int
    since: float
    dropped: bool = False


class WorkQueue:
    """Hands jobs to evaluators once they are ready, and a job whose evaluator is lost to another one.

    A lost evaluator is replaced, however many were lost before: only a job that was under way at several losses, or an
    evaluator that cannot start, ends the run. The result of a job is taken once, from the call that counts.
    """

    def __init__(
        self, rpc: Rpc, evaluators: Evaluators, timeout: float, timeline: Timeline, start_timeout: float = math.inf
    ) -> None:
        """``timeout``: seconds that one job may take. ``start_timeout``: those until an evaluator is ready."""
        self._rpc = rpc
        self._evaluators = evaluators
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._timeline = timeline
        self._waiting: deque[_Task] = deque()
        self._running: dict[Ref[Any], _Running] = {}
        self._idle: list[int] = []
        now = time.monotonic()
        self._starting: dict[Ref[None], tuple[int, float]] = {
            evaluator.ready(): (index, now) for index, evaluator in enumerate(evaluators)
        }
        """Evaluators that are not ready yet, and since when they have been starting."""
        self._failed_starts: Counter[int] = Counter()
        """How often in a row an evaluator was lost before it was ready."""

    def __len__(self) -> int:
        """Return the number of jobs that are waiting or running."""
        return len(self._waiting) + len(self._running)

    @property
    def idle(self) -> Collection[int]:
        """The evaluators that are ready and have no job."""
        return tuple(self._idle)

    def add(self, jobs: Sequence[Job[Any]], *, urgent: bool = False) -> None:
        """Queue ``jobs``; urgent ones go before all waiting jobs."""
        tasks = [_Task(job) for job in jobs]
        if urgent:
            self._waiting.extendleft(reversed(tasks))
        else:
            self._waiting.extend(tasks)

    def drop(self, owner: Any) -> None:
        """Remove the jobs of ``owner``. Running ones go on, but their results are ignored."""
        self._waiting = deque(task for task in self._waiting if task.job.owner != owner)
        for running in self._running.values():
            running.dropped = running.dropped or running.task.job.owner == owner

    def poll(self) -> None:
        """Process the results that have arrived, replace lost evaluators and hand out waiting jobs, without blocking.

        Raises PeerError for a job that failed, that took longer than the timeout twice, or at which evaluators were
        lost ``MOST_DEATHS`` times.
        """
        for reference in self._rpc.ready(list(self._starting)):
            self._welcome(reference)
        for reference in self._rpc.ready(list(self._running)):
            self._finish(reference)
        self._look_for_hanging()
        while self._idle and self._waiting:
            evaluator, task = self._idle.pop(), self._waiting.popleft()
            since = time.monotonic()  # before the call: in one process the job has run when the call returns
            self._running[task.job.call(self._evaluators[evaluator])] = _Running(task, evaluator, since)
        for reference, running in list(self._running.items()):
            if time.monotonic() - running.since > self._timeout:
                self._take_late(reference)

    def wait(self, until: Callable[[], bool], on_nap: Callable[[], None]) -> None:
        """Poll until ``until()`` is true, calling ``on_nap`` in between. The timeout of each job bounds the wait."""
        while True:
            self.poll()
            if until():
                return
            on_nap()
            time.sleep(_NAP_SECONDS)

    def _finish(self, reference: Ref[Any]) -> None:
        running = self._running[reference]
        job = running.task.job
        try:
            result = get(self._rpc, reference, self._timeout, f"evaluator {running.evaluator}, {job.name}")
        except PeerError as error:
            if isinstance(error, PeerLostError) and not isinstance(error, DependencyLostError):
                self._lose(reference, error)
                return
            if not running.dropped:
                raise
        del self._running[reference]
        self._idle.append(running.evaluator)
        if running.dropped:
            return
        seconds = time.monotonic() - running.since
        self._timeline.add(f"evaluator {running.evaluator}", job.kind, job.name, seconds)
        job.done(result)

    def _lose(self, reference: Ref[Any], error: PeerError) -> None:
        """Replace the evaluator of a job under way, and put the job before all waiting ones."""
        running = self._running.pop(reference)
        task = running.task
        task.deaths += 1
        if not self._evaluators.replaceable:
            self._idle.append(running.evaluator)  # an object of this process is there for the next job
            if running.dropped:
                return
            raise error
        if task.deaths >= MOST_DEATHS and not running.dropped:
            # Not PeerLostError: to learn the stage again would not help.
            raise PeerError(f"{error}; {MOST_DEATHS} evaluators in a row were lost at this job") from error
        self._replace(running.evaluator, str(error))
        if not running.dropped:
            self._waiting.appendleft(task)

    def _take_late(self, reference: Ref[Any]) -> None:
        """Hand a job that takes too long to another evaluator, once."""
        running = self._running[reference]
        why = (
            f"evaluator {running.evaluator}, {running.task.job.name}: no answer within {self._timeout:g} s "
            "(timeouts.work in the cluster profile)"
        )
        if running.task.late or not self._evaluators.replaceable:
            raise PeerError(why)
        running.task.late = True
        del self._running[reference]
        self._replace(running.evaluator, why)
        if not running.dropped:
            self._waiting.appendleft(running.task)

    def _look_for_hanging(self) -> None:
        busy = {running.evaluator: reference for reference, running in self._running.items()}
        for evaluator in [*busy, *self._idle]:
            why = self._evaluators[evaluator].silence()
            if why is not None and evaluator in busy:
                job = self._running[busy[evaluator]].task.job
                self._lose(busy[evaluator], PeerLostError(f"evaluator {evaluator}, {job.name}: {why}"))
            elif why is not None:
                self._idle.remove(evaluator)
                self._replace(evaluator, why)
        for reference, (evaluator, since) in list(self._starting.items()):
            why = self._evaluators[evaluator].silence()
            late = f"not ready within {self._start_timeout:g} s (timeouts.start)"
            if why is None and time.monotonic() - since <= self._start_timeout:
                continue
            if why is None and len(self._starting) < len(self._evaluators):  # there may be no room for it; others work
                del self._starting[reference]
                self._replace(evaluator, late)
                continue
            self._lose_start(reference, PeerLostError(f"evaluator {evaluator}, start: {why or late}"))

    def _replace(self, evaluator: int, why: str) -> None:
        self._evaluators.replace(evaluator, why)
        self._starting[self._evaluators[evaluator].ready()] = evaluator, time.monotonic()

    def _welcome(self, reference: Ref[None]) -> None:
        evaluator, _ = self._starting[reference]
        try:
            get(self._rpc, reference, self._timeout, f"evaluator {evaluator}, start")
        except PeerLostError as error:
            self._lose_start(reference, error)
            return
        del self._starting[reference]
        del self._failed_starts[evaluator]
        self._idle.append(evaluator)

    def _lose_start(self, reference: Ref[None], error: PeerError) -> None:
        if not self._evaluators.replaceable:
            raise error
        evaluator, _ = self._starting.pop(reference)
        self._failed_starts[evaluator] += 1
        if self._failed_starts[evaluator] >= MOST_DEATHS:
            raise PeerError(f"{error}; it was started {MOST_DEATHS} times") from error
        self._replace(evaluator, str(error))
