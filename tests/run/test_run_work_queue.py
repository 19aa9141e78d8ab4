"""The evaluators' queue, with an RPC whose calls finish when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.cluster.evaluators import MOST_DEATHS, Evaluators
from ray_l4.cluster.handles import EvaluatorHandle
from ray_l4.cluster.rpc import LocalRpc, Ref
from ray_l4.errors import DependencyLostError, PeerError, PeerLostError
from ray_l4.monitor.timeline import Timeline
from ray_l4.run import work_queue
from ray_l4.run.work_queue import Job, WorkQueue
from ray_l4.store.run_directory import RunDirectory


class Manual:
    """An RPC whose references count its calls; ``finish`` makes some ready. Evaluators are ready once they started."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Any, str, tuple[Any, ...]]] = []
        self.finished: dict[Any, Any] = {}

    def call(self, worker: Any, method: Callable[..., Any], *arguments: Any) -> Any:
        if method.__name__ == "ready":
            self.finish(("ready", worker), self.how_started(worker))
            return "ready", worker
        self.submitted.append((worker, method.__name__, arguments))
        return len(self.submitted) - 1

    def how_started(self, worker: Any) -> PeerError | None:
        """Return the error of a worker that cannot start."""
        return None

    def finish(self, reference: Any, value: Any = None) -> None:
        self.finished[reference] = value

    def ready(self, references: Sequence[Any]) -> list[Any]:
        return [reference for reference in references if reference in self.finished]

    def get_all(self, references: Mapping[str, Sequence[Any]], timeout: float) -> dict[str, list[Any]]:
        for who, owns in references.items():
            for own in owns:
                if isinstance(self.finished[own], Exception):
                    raise PeerError(f"{who}: {self.finished[own]}")
        return {who: [self.finished[own] for own in owns] for who, owns in references.items()}

    def put(self, value: Any) -> Any:
        return value

    def silence(self, worker: Any) -> str | None:
        return None

    def end(self, worker: Any) -> None:
        raise AssertionError("the queue ends nobody")


def jobs(names: Sequence[str], results: list[tuple[str, Any]] | None = None, owner: Any = None) -> list[Job[Any]]:
    """Jobs that ask for the score of their name, and note the result under it."""
    kept: list[tuple[str, Any]] = [] if results is None else results

    def done(name: str, value: Any) -> None:
        kept.append((name, value))

    return [Job(name, partial(_score, name), partial(done, name), owner=owner) for name in names]


def _score(name: str, evaluator: EvaluatorHandle) -> Ref[Any]:
    return evaluator.score(name, ())


def queue_of(rpc: Any, workers: Sequence[Any], timeout: float) -> WorkQueue:
    """A queue whose spans go to a run directory that is never written."""
    evaluators = [EvaluatorHandle(rpc, worker) for worker in workers]
    return WorkQueue(rpc, Evaluators(evaluators), timeout, Timeline(RunDirectory(Path("no-run"))))


def test_each_worker_has_one_job_at_a_time() -> None:
    rpc = Manual()
    queue = queue_of(rpc, ["w0", "w1"], timeout=10)
    queue.add(jobs(["a", "b", "c"]))
    assert rpc.submitted == [], "adding only queues"
    assert len(queue) == 3
    queue.poll()
    queue.poll()
    assert sorted(worker for worker, _, _ in rpc.submitted) == ["w0", "w1"]
    assert [arguments for _, _, arguments in rpc.submitted] == [("a", ()), ("b", ())]
    assert len(queue) == 3


def test_a_worker_that_finishes_gets_the_next_job() -> None:
    rpc, results = Manual(), []
    queue = queue_of(rpc, ["w0", "w1"], timeout=10)
    queue.add(jobs(["a", "b", "c"], results))
    queue.poll()
    rpc.finish(1, "of b")
    queue.poll()
    assert results == [("b", "of b")]
    assert rpc.submitted[2] == (rpc.submitted[1][0], "score", ("c", ()))
    assert len(queue) == 2


def test_results_go_to_their_own_jobs_whatever_the_order() -> None:
    rpc, results = Manual(), []
    queue = queue_of(rpc, ["w0", "w1", "w2"], timeout=10)
    queue.add(jobs(["a", "b", "c"], results))
    queue.poll()
    for reference in (2, 0, 1):
        rpc.finish(reference, rpc.submitted[reference][2])
    queue.poll()
    assert sorted(results) == [(name, (name, ())) for name in "abc"]
    assert len(queue) == 0


def test_urgent_jobs_go_first_in_their_own_order() -> None:
    rpc = Manual()
    queue = queue_of(rpc, ["w0"], timeout=10)
    queue.add(jobs(["slow", "later"]))
    queue.poll()
    queue.add(jobs(["u1", "u2"]), urgent=True)
    for reference in range(4):
        rpc.finish(reference)
        queue.poll()
    assert [arguments[0] for _, _, arguments in rpc.submitted] == ["slow", "u1", "u2", "later"]


def test_a_failed_job_names_evaluator_and_work() -> None:
    rpc = Manual()
    queue = queue_of(rpc, ["w0", "w1"], timeout=10)
    queue.add(jobs(["stage-1.epoch-2.student-0.woz.en"]))
    queue.poll()
    rpc.finish(0, ValueError("bad"))
    with pytest.raises(PeerError, match=r"^evaluator \d, stage-1\.epoch-2\.student-0\.woz\.en: bad$"):
        queue.poll()


def test_an_error_while_a_result_is_taken_reaches_the_caller() -> None:
    """For instance, a full disk while a score is written."""

    def full(value: Any) -> None:
        raise OSError("disk full")

    rpc = Manual()
    queue = queue_of(rpc, ["w0"], timeout=10)
    queue.add([Job("a", partial(_score, "a"), full)])
    queue.poll()
    rpc.finish(0)
    with pytest.raises(OSError, match="disk full"):
        queue.poll()


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.naps: list[float] = []
        monkeypatch.setattr(work_queue.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(work_queue.time, "sleep", self.naps.append)


def test_waiting_is_bounded_for_each_job(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rpc = Clock(monkeypatch), Manual()
    queue = queue_of(rpc, ["w0"], timeout=30)
    queue.add(jobs(["a", "b"]))
    queue.poll()
    clock.now += 29
    queue.poll()
    rpc.finish(0)
    queue.poll()  # b begins now
    clock.now += 29
    queue.poll()
    clock.now += 2
    with pytest.raises(PeerError, match=r"evaluator 0, b: no answer within 30 s \(timeouts\.work"):
        queue.poll()


def test_a_finished_job_is_not_late_however_long_nobody_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator polls between steps, and a step may take long."""
    clock, rpc = Clock(monkeypatch), Manual()
    results: list[tuple[str, Any]] = []
    queue = queue_of(rpc, ["w0"], timeout=30)
    queue.add(jobs(["a"], results))
    queue.poll()
    rpc.finish(0, "in time")
    clock.now += 1000
    queue.poll()
    assert results == [("a", "in time")]


def test_a_waiting_job_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rpc = Clock(monkeypatch), Manual()
    queue = queue_of(rpc, ["w0"], timeout=30)
    queue.add(jobs(["a", "b"]))
    for reference in range(2):
        queue.poll()
        clock.now += 20
        rpc.finish(reference)
    queue.poll()
    assert len(queue) == 0


def test_wait_sleeps_between_polls_until_the_condition_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rpc = Clock(monkeypatch), Manual()
    queue = queue_of(rpc, ["w0"], timeout=30)
    queue.add(jobs(["a", "b"]))
    naps: list[int] = []

    def on_nap() -> None:
        naps.append(len(queue))
        if len(naps) % 2 == 0:
            rpc.finish(len(naps) // 2 - 1)

    queue.wait(lambda: not len(queue), on_nap)
    assert naps == [2, 2, 1, 1]
    assert len(clock.naps) == 4
    assert all(0 < nap < 1 for nap in clock.naps), "neither a busy loop nor a long sleep"


def test_wait_can_be_interrupted_by_its_caller() -> None:
    """A run is stopped this way while evaluators work."""
    queue = queue_of(Manual(), ["w0"], timeout=30)
    queue.add(jobs(["a"]))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.wait(lambda: False, stop)


@given(st.integers(1, 4), st.integers(0, 20), st.randoms(use_true_random=False))
def test_every_job_is_done_once_however_the_workers_finish(workers: int, count: int, random: Any) -> None:
    rpc, results = Manual(), []
    queue = queue_of(rpc, list(range(workers)), timeout=1e9)
    queue.add(jobs([str(i) for i in range(count)], results))
    for _ in range(count):
        queue.poll()
        open_references = [r for r in range(len(rpc.submitted)) if r not in rpc.finished]
        assert len(open_references) <= workers
        busy = [rpc.submitted[r][0] for r in open_references]
        assert len(set(busy)) == len(busy)
        for reference in random.sample(open_references, random.randint(0, len(open_references))):
            rpc.finish(reference, reference)
    for _ in range(count + 1):  # enough even for one worker that has done nothing so far
        for reference in range(len(rpc.submitted)):
            rpc.finish(reference, reference)
        queue.poll()
    assert len(queue) == 0
    assert sorted(int(name) for name, _ in results) == list(range(count))


class Shouting:
    """An evaluator whose scores are the names in capitals."""

    def ready(self) -> None:
        """An object of this process is."""

    def score(self, name: str, predictions: Sequence[str]) -> str:
        return name.upper()


def test_the_queue_of_one_process() -> None:
    """Every poll hands out and finishes one job for each worker."""
    results: list[tuple[str, Any]] = []
    queue = queue_of(LocalRpc(), [Shouting(), Shouting()], timeout=10)
    queue.add(jobs(["a", "b", "c"], results))
    queue.wait(lambda: not len(queue), lambda: None)
    assert sorted(results) == [("a", "A"), ("b", "B"), ("c", "C")]


def test_dropped_jobs_are_not_handed_out_and_their_results_are_ignored() -> None:
    rpc, results = Manual(), []
    queue = queue_of(rpc, ["w0"], timeout=10)
    queue.add(jobs(["kept 1"], results, owner="kept"))
    queue.add(jobs(["gone 1", "gone 2"], results, owner="gone"))
    queue.add(jobs(["kept 2"], results, owner="kept"))
    queue.poll()
    rpc.finish(0, "value 0")
    queue.poll()  # gone 1 is running now
    queue.drop("gone")
    assert len(queue) == 2, "the one that is running goes on, the one that was waiting is removed"
    queue.poll()
    rpc.finish(1, ValueError("of a job that nobody wants any more"))
    queue.poll()
    rpc.finish(2, "value 2")
    queue.poll()
    assert results == [("kept 1", "value 0"), ("kept 2", "value 2")]
    assert [arguments[0] for _, _, arguments in rpc.submitted] == ["kept 1", "gone 1", "kept 2"]
    assert len(queue) == 0


def test_a_dropped_job_that_hangs_is_still_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its evaluator is busy with it and can do nothing else."""
    clock, rpc = Clock(monkeypatch), Manual()
    queue = queue_of(rpc, ["w0"], timeout=30)
    queue.add(jobs(["a"], owner="gone"))
    queue.poll()
    queue.drop("gone")
    clock.now += 31
    with pytest.raises(PeerError, match="evaluator 0, a: no answer within 30 s"):
        queue.poll()


def test_every_finished_job_is_a_span_of_its_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rpc = Clock(monkeypatch), Manual()
    timeline = Spans()
    queue = WorkQueue(rpc, Evaluators([EvaluatorHandle(rpc, "w0")]), 30, timeline)  # type: ignore[arg-type]
    queue.add([*jobs(["a"]), Job("b", partial(_score, "b"), lambda value: None, kind="replay")])
    for reference, seconds in enumerate((5, 7)):
        queue.poll()
        clock.now += seconds
        rpc.finish(reference)
    queue.poll()
    assert timeline.added == [("evaluator 0", "scoring", "a", 5), ("evaluator 0", "replay", "b", 7)]


class Spans:
    """A timeline that is kept in memory."""

    def __init__(self) -> None:
        self.added: list[tuple[str, str, str, float]] = []

    def add(self, lane: str, kind: str, label: str, seconds: float) -> None:
        self.added.append((lane, kind, label, seconds))


class Mortal(Manual):
    """An RPC whose evaluators may die."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[Any] = []
        self.silent: set[Any] = set()
        """Evaluators that hang."""
        self.slow: set[Any] = set()
        """Evaluators that are never ready."""
        self.stillborn: dict[Any, PeerError] = {}
        """Evaluators that cannot start, and how they fail."""

    def how_started(self, worker: Any) -> PeerError | None:
        return self.stillborn.get(worker)

    def ready(self, references: Sequence[Any]) -> list[Any]:
        return [own for own in super().ready(references) if own not in [("ready", worker) for worker in self.slow]]

    def silence(self, worker: Any) -> str | None:
        return "no sign of life" if worker in self.silent else None

    def get_all(self, references: Mapping[str, Sequence[Any]], timeout: float) -> dict[str, list[Any]]:
        for who, owns in references.items():
            for own in owns:
                if isinstance(self.finished[own], PeerError):
                    raise type(self.finished[own])(f"{who}: {self.finished[own]}")
        return super().get_all(references, timeout)

    def end(self, worker: Any) -> None:
        self.ended.append(worker)

    def served(self) -> list[tuple[int, Any, str]]:
        """Open calls for scores: reference, worker, name of the job."""
        calls = [
            (i, worker, arguments[0]) for i, (worker, name, arguments) in enumerate(self.submitted) if name == "score"
        ]
        return [call for call in calls if call[0] not in self.finished]


def mortal(count: int, timeout: float = 30, rpc: Mortal | None = None) -> tuple[Mortal, Evaluators, WorkQueue]:
    """A queue whose evaluators are numbered in the order in which they were started."""
    rpc, started = rpc or Mortal(), iter(range(1000))

    def start(index: int) -> EvaluatorHandle:
        return EvaluatorHandle(rpc, next(started))  # type: ignore[arg-type]

    pool = Evaluators([start(index) for index in range(count)], start)  # type: ignore[arg-type]
    return rpc, pool, WorkQueue(rpc, pool, timeout, Timeline(RunDirectory(Path("no-run"))), 100)  # type: ignore[arg-type]


@given(st.integers(1, 4), st.integers(0, 30), st.randoms(use_true_random=False))
def test_every_job_is_done_once_whichever_evaluators_die(workers: int, count: int, random: Any) -> None:
    results: list[tuple[str, Any]] = []
    rpc, _, queue = mortal(workers)
    queue.add(jobs([str(i) for i in range(count)], results))
    deaths: dict[str, int] = {}
    while len(queue):
        queue.poll()
        for reference, _, name in rpc.served():
            if random.random() < 0.5 and deaths.get(name, 0) < 2:
                deaths[name] = deaths.get(name, 0) + 1
                rpc.finish(reference, PeerLostError("its process died"))
            elif random.random() < 0.5:
                rpc.finish(reference, name)
    assert sorted(int(name) for name, _ in results) == list(range(count))
    assert all(name == value for name, value in results)
    assert len(rpc.ended) == sum(deaths.values())


def test_a_job_at_which_every_evaluator_dies_ends_the_run_and_is_named() -> None:
    rpc, _, queue = mortal(2)
    queue.add(jobs(["poison"]))
    for _ in range(2):
        queue.poll()
        rpc.finish(rpc.served()[0][0], PeerLostError("its machine ran out of memory"))
    queue.poll()
    queue.poll()
    rpc.finish(rpc.served()[0][0], PeerLostError("its machine ran out of memory"))
    with pytest.raises(PeerError, match="poison: its machine ran out of memory; 3 evaluators") as caught:
        queue.poll()
    assert not isinstance(caught.value, PeerLostError), "else the stage would be learned again"


@pytest.mark.parametrize("busy", [True, False])
def test_an_evaluator_that_hangs_is_replaced_busy_or_idle(busy: bool) -> None:
    results: list[tuple[str, Any]] = []
    rpc, pool, queue = mortal(1)
    queue.add(jobs(["a"] if busy else [], results))
    queue.poll()
    rpc.silent.add(0)
    queue.poll()
    queue.poll()
    assert rpc.ended == [0] and pool[0].worker == 1
    if busy:
        (again,) = [call for call in rpc.served() if call[1] == 1]
        rpc.finish(again[0], "value")
        rpc.finish(0, "of the one that was stopped, too late")
        queue.poll()
        assert results == [("a", "value")]


def test_a_job_that_takes_too_long_is_handed_out_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    rpc, _, queue = mortal(1)
    queue.add(jobs(["a"]))
    queue.poll()
    clock.now += 31
    queue.poll()
    assert rpc.ended == [0]
    queue.poll()
    clock.now += 31
    with pytest.raises(PeerError, match="evaluator 0, a: no answer within 30 s"):
        queue.poll()


def test_what_a_job_was_given_being_lost_is_no_fault_of_its_evaluator() -> None:
    rpc, _, queue = mortal(1)
    queue.add(jobs(["a"]))
    queue.poll()
    rpc.finish(0, DependencyLostError("a peer it depends on died"))
    with pytest.raises(DependencyLostError):
        queue.poll()
    assert rpc.ended == []


@pytest.mark.parametrize("deaths", range(MOST_DEATHS))
def test_an_evaluator_that_dies_at_its_start_is_started_again(deaths: int) -> None:
    rpc = Mortal()
    rpc.stillborn = dict.fromkeys(range(deaths), PeerLostError("its process died"))
    _, pool, queue = mortal(1, rpc=rpc)
    queue.add(jobs(["a"]))
    for _ in range(deaths + 1):
        queue.poll()
    assert rpc.ended == list(range(deaths)) and pool[0].worker == deaths
    assert [worker for _, worker, _ in rpc.served()] == [deaths]


def test_one_that_dies_at_every_start_ends_the_run_with_the_cause() -> None:
    rpc = Mortal()
    rpc.stillborn = dict.fromkeys(range(9), PeerLostError("its process died"))
    _, _, queue = mortal(1, rpc=rpc)
    with pytest.raises(PeerError, match="evaluator 0, start: its process died; it was started 3 times"):
        queue.wait(lambda: False, lambda: None)
    assert rpc.ended == [0, 1]


def test_an_error_that_another_start_would_meet_again_is_raised_at_once() -> None:
    rpc = Mortal()
    rpc.stillborn = {0: PeerError("no such model")}
    _, _, queue = mortal(2, rpc=rpc)
    with pytest.raises(PeerError, match="no such model"):
        queue.poll()
    assert rpc.ended == []


def test_one_that_hangs_at_its_start_is_started_again() -> None:
    rpc = Mortal()
    rpc.slow.add(0)
    _, pool, queue = mortal(1, rpc=rpc)
    queue.poll()
    assert pool[0].worker == 0, "it takes its time"
    rpc.silent.add(0)
    queue.poll()
    assert rpc.ended == [0] and pool[0].worker == 1


@pytest.mark.parametrize("others_work", [True, False])
def test_one_that_is_never_ready_is_started_again(others_work: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without end while another one works, as there may be no room for it now; three times if there is none."""
    clock, rpc = Clock(monkeypatch), Mortal()
    _, pool, queue = mortal(1 + others_work, rpc=rpc)
    rpc.slow.update({0, *range(2, 99)} if others_work else range(99))
    for number in range(2 if not others_work else 9):
        queue.poll()
        clock.now += 99
        queue.poll()
        assert len(rpc.ended) == number, "not before the limit"
        clock.now += 2
        queue.poll()
        assert len(rpc.ended) == number + 1
    if others_work:
        queue.add(jobs(["a"]))
        queue.poll()
        assert [worker for _, worker, _ in rpc.served()] == [1] and pool[1].worker == 1
        return
    clock.now += 101
    with pytest.raises(PeerError, match=r"not ready within 100 s \(timeouts.start\); it was started 3 times"):
        queue.poll()
