"""The thread that runs a served model: requests wait in one queue, and those under way share the model's steps."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ray_l4.errors import first_line
from ray_l4.learner.batch_rows import Row
from ray_l4.learner.cache_memory import cache_budget
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.inspection import LoadedModel
from ray_l4.learner.models import arithmetic
from ray_l4.learner.rolling_batch import RollingBatch
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.problems import RequestError

log = logging.getLogger("ray_l4.serve")

_MOST_BATCHES = 4
"""Batches at a time. Requests with other settings of sampling cannot share one; they share its memory."""
_IDLE = 1.0
"""Seconds after which the idle thread looks around without being woken."""


@dataclass(frozen=True)
class NewTokens:
    """New tokens of a continuation."""

    ids: Sequence[int]
    finish: str | None = None
    """Why it has ended: ``stop`` or ``length``; None if it goes on."""
    failure: RequestError | None = None


@dataclass(eq=False)
class Job:
    """A prompt to be continued."""

    prompt: Prompt
    decoding: Decoding
    tell: Callable[[NewTokens], None]
    """Called by the generator's thread."""
    every_token: bool = False
    """Whether to tell every token; otherwise all at the end."""
    dropped: bool = False
    """Set by whoever does not want the rest any more."""


@dataclass(eq=False)
class _Underway:
    """A job that has joined a batch."""

    job: Job
    row: Row
    room: int
    """Tokens that it gets at most."""
    told: int = 0

    def advance(self) -> bool:
        """Tell what is new; returns whether the job goes on."""
        if self.job.dropped:
            self.row.done = True
            return False
        if self.row.done:
            finish = "length" if len(self.row.new) >= self.room else "stop"
            self.job.tell(NewTokens(self.row.new[self.told :], finish))
        elif self.job.every_token and len(self.row.new) > self.told:
            self.job.tell(NewTokens(self.row.new[self.told :]))
            self.told = len(self.row.new)
        return not self.row.done


@dataclass
class _Batch:
    rows: RollingBatch
    underway: list[_Underway] = field(default_factory=list)


class Generator:
    """Continues prompts with one model, which no other thread uses."""

    def __init__(self, loaded: LoadedModel, limits: Limits, meter: Meter) -> None:
        """Begin with an empty queue."""
        self._loaded, self._limits, self._meter = loaded, limits, meter
        self._loaded.model.eval()
        self._cache_bytes = cache_budget(loaded.model.device) // _MOST_BATCHES
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._closing = self._ended = False
        self._batches: dict[Decoding, _Batch] = {}
        self._joining: list[Job] = []
        """Jobs that are neither in the queue nor in a batch."""
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue. Raises RequestError if that is full, or if the thread has ended."""
        with self._wake:
            if self._ended:
                raise not_running()
            if len(self._waiting) >= self._limits.queue:
                message = f"{len(self._waiting)} requests wait already, as many as may; try again later"
                raise RequestError(503, message, "queue_full", retry_after=1)
            self._waiting.append(job)
            self._meter.queue.inc()
            self._wake.notify()

    def close(self, seconds: float | None = None) -> None:
        """End the thread once all jobs are done. ``seconds``: how long to wait for that; None does not wait."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if seconds is not None:
            self._thread.join(seconds)

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return not self._ended

    def _run(self) -> None:
        try:
            with arithmetic(self._loaded.settings, self._loaded.model.device):
                self._work()
        except BaseException as error:  # whatever it is: nobody else would say so
            log.critical("the thread of the model has ended: %s", type(error).__name__, exc_info=error)
        finally:
            self._end()

    def _work(self) -> None:
        """Continue prompts until the generator is closed and nothing is left."""
        while True:
            with self._wake:
                while not self._waiting and not self._batches:
                    if self._closing:
                        return
                    self._wake.wait(_IDLE)
            self._admit()
            for decoding, batch in list(self._batches.items()):
                self._step(decoding, batch)

    def _end(self) -> None:
        """Take no more jobs, and tell those that are left: there are some if the thread ends by an error."""
        with self._wake:
            self._ended = True
            left = [
                *self._joining,
                *self._waiting,
                *(each.job for batch in self._batches.values() for each in batch.underway),
            ]
            self._meter.queue.dec(len(self._waiting))
            self._waiting.clear()
        for job in left:
            job.tell(NewTokens([], failure=not_running()))

    def _admit(self) -> None:
        """Let jobs that wait join batches, as far as there is room, the earliest first."""
        free = self._limits.batch - sum(len(batch.underway) for batch in self._batches.values())
        by_decoding: dict[Decoding, list[Job]] = {}
        kept: list[Job] = []
        with self._wake:
            while self._waiting and free > 0:
                job = self._waiting.popleft()
                self._meter.queue.dec()
                if not job.dropped:
                    by_decoding.setdefault(job.decoding, []).append(job)
                    self._joining.append(job)
                    free -= 1
        for decoding, jobs in by_decoding.items():
            kept += jobs[self._join(decoding, jobs) :]
        if kept:
            with self._wake:
                self._waiting.extendleft(reversed(kept))
                self._meter.queue.inc(len(kept))
        self._joining = []

    def _join(self, decoding: Decoding, jobs: Sequence[Job]) -> int:
        """Let the first jobs join the batch of their decoding; returns how many there was room for."""
        batch, count = self._batches.get(decoding), len(jobs)
        if batch is None and len(self._batches) >= _MOST_BATCHES:
            return 0
        try:
            batch = batch or _Batch(RollingBatch(self._loaded.model, decoding, self._cache_bytes))
            count = batch.rows.room_for([job.prompt for job in jobs])
            rows = batch.rows.join([job.prompt for job in jobs[:count]])
        except Exception as error:  # whatever it is: the requests are told, and the thread goes on
            self._fail([*jobs[:count], *(each.job for each in batch.underway)] if batch else jobs, error)
            self._batches.pop(decoding, None)
            return count
        self._batches[decoding] = batch
        for job, row in zip(jobs, rows, strict=False):
            self._meter.tokens.labels("prompt").inc(len(job.prompt.ids))
            underway = _Underway(job, row, row.left)
            if underway.advance():  # one that may get no tokens is done already
                batch.underway.append(underway)
        return count

    def _step(self, decoding: Decoding, batch: _Batch) -> None:
        """Add a token to every row of a batch, which ends with its last row."""
        try:
            stepped = batch.rows.step()
        except Exception as error:
            self._fail([each.job for each in batch.underway], error)
            del self._batches[decoding]
            return
        if stepped:
            self._meter.rows.observe(len(stepped))
            self._meter.tokens.labels("generated").inc(len(stepped))
        batch.underway = [each for each in batch.underway if each.advance()]
        if not batch.underway:
            del self._batches[decoding]

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        log.error("the model failed: %s: %s", type(error).__name__, first_line(error), exc_info=error)
        failure = RequestError(500, f"the model failed: {type(error).__name__}: {first_line(error)}", "model_failed")
        for job in jobs:
            job.tell(NewTokens([], failure=failure))


def not_running() -> RequestError:
    """Return what is told where the thread of the model has ended."""
    return RequestError(503, "the model does not run any more; the service has to be restarted", "model_ended")
