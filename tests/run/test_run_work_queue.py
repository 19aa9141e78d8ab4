"""The evaluators' queue on a transport whose calls finish when the test says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.cluster.rpc import InProcess
from ray_l4.errors import PeerError
from ray_l4.monitor.timeline import Timeline
from ray_l4.run import work_queue as pool_module
from ray_l4.run.work_queue import Job, WorkPool
from ray_l4.store.run_directory import RunDirectory


class Manual:
    """References are (worker, number); ``finish`` makes some ready."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, str, tuple[Any, ...]]] = []
        self.finished: dict[int, Any] = {}

    def submit(self, worker: str, method: str, *arguments: Any) -> int:
        self.submitted.append((worker, method, arguments))
        return len(self.submitted) - 1

    def finish(self, reference: int, value: Any = None) -> None:
        self.finished[reference] = value

    def ready(self, references: Sequence[int]) -> list[int]:
        return [reference for reference in references if reference in self.finished]

    def get(self, reference: int, timeout: float, waiting_for: str) -> Any:
        value = self.finished[reference]
        if isinstance(value, Exception):
            raise PeerError(f"{waiting_for}: {value}")
        return value

    def put(self, value: Any) -> Any:
        return value


def jobs(names: Sequence[str], results: list[tuple[str, Any]] | None = None) -> list[Job]:
    """Jobs that note their results under their names."""
    kept: list[tuple[str, Any]] = [] if results is None else results
    return [Job(name, "answer", (name,), lambda value, name=name: kept.append((name, value))) for name in names]  # type: ignore[misc]


def pool_of(transport: Any, workers: Sequence[Any], timeout: float) -> WorkPool:
    """A pool whose spans go to a run directory that nobody reads."""
    return WorkPool(transport, workers, timeout, Timeline(RunDirectory(Path("no-run"))))


def test_each_worker_has_one_job_at_a_time() -> None:
    transport = Manual()
    pool = pool_of(transport, ["w0", "w1"], timeout=10)
    pool.add(jobs(["a", "b", "c"]))
    assert transport.submitted == [], "adding only queues"
    assert len(pool) == 3
    pool.poll()
    pool.poll()
    assert sorted(worker for worker, _, _ in transport.submitted) == ["w0", "w1"]
    assert [arguments for _, _, arguments in transport.submitted] == [("a",), ("b",)]
    assert len(pool) == 3


def test_a_worker_that_finishes_gets_the_next_job() -> None:
    transport, results = Manual(), []
    pool = pool_of(transport, ["w0", "w1"], timeout=10)
    pool.add(jobs(["a", "b", "c"], results))
    pool.poll()
    transport.finish(1, "of b")
    pool.poll()
    assert results == [("b", "of b")]
    assert transport.submitted[2] == (transport.submitted[1][0], "answer", ("c",))
    assert len(pool) == 2


def test_results_go_to_their_own_jobs_whatever_the_order() -> None:
    transport, results = Manual(), []
    pool = pool_of(transport, ["w0", "w1", "w2"], timeout=10)
    pool.add(jobs(["a", "b", "c"], results))
    pool.poll()
    for reference in (2, 0, 1):
        transport.finish(reference, transport.submitted[reference][2])
    pool.poll()
    assert sorted(results) == [("a", ("a",)), ("b", ("b",)), ("c", ("c",))]
    assert len(pool) == 0


def test_urgent_jobs_go_first_in_their_own_order() -> None:
    transport = Manual()
    pool = pool_of(transport, ["w0"], timeout=10)
    pool.add(jobs(["slow", "later"]))
    pool.poll()
    pool.add(jobs(["u1", "u2"]), urgent=True)
    for reference in range(4):
        transport.finish(reference)
        pool.poll()
    assert [arguments[0] for _, _, arguments in transport.submitted] == ["slow", "u1", "u2", "later"]


def test_a_failed_job_names_evaluator_and_work() -> None:
    transport = Manual()
    pool = pool_of(transport, ["w0", "w1"], timeout=10)
    pool.add(jobs(["stage-1.epoch-2.student-0.woz.en"]))
    pool.poll()
    transport.finish(0, ValueError("bad"))
    with pytest.raises(PeerError, match=r"^evaluator \d, stage-1\.epoch-2\.student-0\.woz\.en: bad$"):
        pool.poll()


def test_an_error_in_taking_a_result_reaches_the_caller() -> None:
    """Such as a full disk while the score is written: it must not be lost."""

    def full(value: Any) -> None:
        raise OSError("disk full")

    transport = Manual()
    pool = pool_of(transport, ["w0"], timeout=10)
    pool.add([Job("a", "answer", (), full)])
    pool.poll()
    transport.finish(0)
    with pytest.raises(OSError, match="disk full"):
        pool.poll()


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.naps: list[float] = []
        monkeypatch.setattr(pool_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(pool_module.time, "sleep", self.naps.append)


def test_waiting_is_bounded_for_each_job(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, transport = Clock(monkeypatch), Manual()
    pool = pool_of(transport, ["w0"], timeout=30)
    pool.add(jobs(["a", "b"]))
    pool.poll()
    clock.now += 29
    pool.poll()
    transport.finish(0)
    pool.poll()  # b begins now
    clock.now += 29
    pool.poll()
    clock.now += 2
    with pytest.raises(PeerError, match=r"evaluator 0, b: no answer within 30 s \(timeouts\.work"):
        pool.poll()


def test_a_job_that_is_done_is_not_late_however_long_nobody_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator looks between steps, and a step may take long."""
    clock, transport = Clock(monkeypatch), Manual()
    results: list[tuple[str, Any]] = []
    pool = pool_of(transport, ["w0"], timeout=30)
    pool.add(jobs(["a"], results))
    pool.poll()
    transport.finish(0, "in time")
    clock.now += 1000
    pool.poll()
    assert results == [("a", "in time")]


def test_a_waiting_job_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, transport = Clock(monkeypatch), Manual()
    pool = pool_of(transport, ["w0"], timeout=30)
    pool.add(jobs(["a", "b"]))
    for reference in range(2):
        pool.poll()
        clock.now += 20
        transport.finish(reference)
    pool.poll()
    assert len(pool) == 0


def test_wait_naps_until_the_condition_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, transport = Clock(monkeypatch), Manual()
    pool = pool_of(transport, ["w0"], timeout=30)
    pool.add(jobs(["a", "b"]))
    naps: list[int] = []

    def on_nap() -> None:
        naps.append(len(pool))
        if len(naps) % 2 == 0:
            transport.finish(len(naps) // 2 - 1)

    pool.wait(lambda: not len(pool), on_nap)
    assert naps == [2, 2, 1, 1]
    assert len(clock.naps) == 4
    assert all(0 < nap < 1 for nap in clock.naps), "neither a busy loop nor a long sleep"


def test_wait_can_be_interrupted_by_its_caller() -> None:
    """This is how a run is stopped while evaluators work."""
    pool = pool_of(Manual(), ["w0"], timeout=30)
    pool.add(jobs(["a"]))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.wait(lambda: False, stop)


@given(st.integers(1, 4), st.integers(0, 20), st.randoms(use_true_random=False))
def test_every_job_is_done_once_however_the_workers_finish(workers: int, count: int, random: Any) -> None:
    transport, results = Manual(), []
    pool = pool_of(transport, list(range(workers)), timeout=1e9)
    pool.add(jobs([str(i) for i in range(count)], results))
    for _ in range(count):
        pool.poll()
        open_references = [r for r in range(len(transport.submitted)) if r not in transport.finished]
        assert len(open_references) <= workers
        busy = [transport.submitted[r][0] for r in open_references]
        assert len(set(busy)) == len(busy)
        for reference in random.sample(open_references, random.randint(0, len(open_references))):
            transport.finish(reference, reference)
    for _ in range(count + 1):  # enough even for one worker that has done nothing so far
        for reference in range(len(transport.submitted)):
            transport.finish(reference, reference)
        pool.poll()
    assert len(pool) == 0
    assert sorted(int(name) for name, _ in results) == list(range(count))


def test_the_pool_of_one_process() -> None:
    """Every poll hands out and finishes one job for each worker."""

    class Evaluator:
        def answer(self, name: str) -> str:
            return name.upper()

    results: list[tuple[str, Any]] = []
    pool = pool_of(InProcess(), [Evaluator(), Evaluator()], timeout=10)
    pool.add(jobs(["a", "b", "c"], results))
    pool.wait(lambda: not len(pool), lambda: None)
    assert sorted(results) == [("a", "A"), ("b", "B"), ("c", "C")]
