"""How pulses are read, with a store and a clock of the test's own, and which of them a wait looks at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ray_l4.cluster import pulses
from ray_l4.cluster.actors import actor_class
from ray_l4.cluster.pulses import Pulse, Pulses
from tests.cluster.test_cluster_actors import HERE, Calls


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    state: dict[str, Any] = {"now": 100.0, "value": None, "reads": 0}

    def read(pulse: Pulse) -> bytes | None:
        state["reads"] += 1
        return state["value"]  # type: ignore[no-any-return]

    clock: Callable[[], float] = lambda: state["now"]  # noqa: E731
    monkeypatch.setattr(pulses.time, "monotonic", clock)
    monkeypatch.setattr(pulses.time, "time", lambda: clock() + 900)
    monkeypatch.setattr(Pulse, "_read", read)
    return state


def test_a_pulse_that_stands_still_for_the_limit_is_that_of_a_process_that_hangs(world: dict[str, Any]) -> None:
    pulse = Pulse("evaluator 0", 60)
    world["value"] = b"1 980.0 answer (evaluator)"
    assert not pulse.hangs()
    world["now"] += 59
    assert not pulse.hangs()
    world["now"] += 6
    assert pulse.silence() == "no sign of life for 60 s (timeouts.control); last span: answer (evaluator), 85 s ago"
    world["value"] = b"2 1060.0 score (evaluator)"
    world["now"] += 6
    assert pulse.silence() is None, "it was only slow"
    assert pulse.last_span() == "; last span: score (evaluator), 11 s ago"


def test_a_watcher_that_was_away_for_long_does_not_take_the_living_for_dead(world: dict[str, Any]) -> None:
    pulse = Pulse("evaluator 0", 60)
    for beat in range(5):
        world["value"] = b"%d 1000.0 answer" % beat
        assert not pulse.hangs()
        world["now"] += 1000


def test_a_process_that_has_not_begun_to_beat_does_not_hang(world: dict[str, Any]) -> None:
    pulse = Pulse("evaluator 0", 60)
    pulse.hangs()
    world["now"] += 1000
    assert not pulse.hangs()


def test_the_store_is_asked_once_per_interval_however_often_one_looks(world: dict[str, Any]) -> None:
    pulse = Pulse("evaluator 0", 60)
    for _ in range(100):
        pulse.hangs()
    assert world["reads"] == 1


def test_a_watcher_that_was_stopped_together_with_the_worker_counts_anew(world: dict[str, Any]) -> None:
    pulse = Pulse("student 0", 60)
    world["value"] = b"1 1000.0 forward"
    assert not pulse.hangs()
    world["now"] += 1000
    assert not pulse.hangs(), "the worker may not have come to its next beat yet"
    world["now"] += 59
    assert not pulse.hangs()
    world["now"] += 6
    assert pulse.hangs()


def test_a_store_that_does_not_answer_leaves_the_last_span_that_is_known(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = Pulse("student 0", 60)
    assert pulse.last_span() == "", "nothing is known before the first beat"
    world["value"] = b"1 990.0 backward (student 0, stage 1, step 130)"
    pulse.hangs()

    def fail(pulse: Pulse) -> None:
        raise RuntimeError("the control service is away")

    monkeypatch.setattr(Pulse, "_read", fail)
    assert pulse.last_span() == "; last span: backward (student 0, stage 1, step 130), 10 s ago"


@dataclass(frozen=True)
class Actor:
    """An actor and, at the same time, a reference to the result of a call to it."""

    _actor_id: str

    def task_id(self) -> Any:
        return self

    def actor_id(self) -> str:
        return self._actor_id


STUDENTS = [Actor("s0"), Actor("s1")]
EVALUATORS = [Actor("e0"), Actor("e1")]


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> tuple[Pulses, set[str]]:
    """Two students and two evaluators, and the pulses that stand still."""
    still: set[str] = set()
    monkeypatch.setattr(Pulse, "hangs", lambda pulse: pulse.name in still)
    monkeypatch.setattr(Pulse, "_read", lambda pulse: f"7 0.0 work ({pulse.name})".encode())
    monkeypatch.setattr(Pulse, "forget", lambda pulse: None)
    watched = Pulses()
    for number, (student, evaluator) in enumerate(zip(STUDENTS, EVALUATORS, strict=True)):
        watched.watch(student, f"student {number}", Pulse(student._actor_id, 60), "students")
        watched.watch(evaluator, f"evaluator {number}", Pulse(evaluator._actor_id, 120), f"evaluator {number}")
    return watched, still


def test_a_wait_for_one_student_ends_when_another_hangs_for_it_may_wait_for_that_one(
    crew: tuple[Pulses, set[str]],
) -> None:
    watched, still = crew
    still |= {"s1", "e0"}
    assert (watched.silent(STUDENTS[:1]) or "").startswith("student 1: no sign of life for 60 s")
    assert (watched.silent(EVALUATORS[:1]) or "").startswith("evaluator 0: no sign of life for 120 s")
    assert watched.silent(EVALUATORS[1:]) is None, "no evaluator waits for another"
    assert watched.silent([Actor("of the coordinator")]) is None
    watched.forget(STUDENTS[1])
    assert watched.silent(STUDENTS[:1]) is None
    watched.forget(STUDENTS[1])  # one that hangs is ended where it is noticed, and again where it is replaced


def test_between_two_looks_at_the_pulses_passes_the_time_between_two_beats(crew: tuple[Pulses, set[str]]) -> None:
    watched, _ = crew
    assert watched.interval(STUDENTS) == 5.0
    assert watched.interval(EVALUATORS) == 10.0
    assert watched.interval([Actor("of the coordinator")]) == float("inf")
    assert Pulses().interval(["any reference"]) == float("inf")


def test_the_last_span_is_of_the_workers_that_serve_what_is_awaited(crew: tuple[Pulses, set[str]]) -> None:
    watched, _ = crew
    told = watched.last_spans([STUDENTS[1], STUDENTS[1], EVALUATORS[0]])
    assert [part.split(", ")[0] for part in told.split("; ")] == ["", "last span: work (s1)", "last span: work (e0)"]


def test_a_beat_says_since_when_the_worker_does_what(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[Callable[[], tuple[float, str]]] = []
    monkeypatch.setattr("ray_l4.cluster.actors.beat", lambda name, limit, span: spans.append(span))
    began = time.time()
    actor = actor_class(Calls, HERE)(5, pulse=("worker", 60.0))
    (span,) = spans
    assert span()[1] == "idle (the served object)"
    seen: list[tuple[float, str]] = []
    actor.served.ready = lambda: seen.append(span())
    actor.ready()
    assert [what for _, what in seen] == ["ready (the served object)"]
    assert began <= seen[0][0] <= time.time()
    assert span()[1] == "idle after ready (the served object)"
