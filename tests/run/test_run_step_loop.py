"""The loop of a stage on workers that write down what is asked of them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import PeerError
from ray_l4.methods import Topology, complete, isolated, taught
from ray_l4.run.step_loop import StepFigures, train_steps

GENERATION = 5


class Reference:
    """What a call gives back; ``value`` is known at once."""

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Recorder:
    """A transport that records: every call with its arguments' values, what is waited for, and what is still held."""

    calls: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)
    log: list[tuple[str, int]] = field(default_factory=list)
    """Every submitted and collected step, in order."""
    waits: list[tuple[str, float]] = field(default_factory=list)
    alive: weakref.WeakSet[Reference] = field(default_factory=weakref.WeakSet)
    predictions_held: list[int] = field(default_factory=list)
    """How many references to predictions were alive whenever a value was waited for."""
    fail: tuple[int, int] | None = None
    """Student and step whose backward fails."""

    def submit(self, worker: int, method: str, *arguments: Any) -> Reference:
        values = [a.value if isinstance(a, Reference) else a for a in arguments]
        self.calls.setdefault(worker, []).append((method, *values))
        generation, step = values[:2]
        assert generation == GENERATION
        if method in ("forward", "predict"):
            reference = Reference(("predictions", worker, step))
            self.alive.add(reference)
            self.log.append(("submit", step))
            return reference
        return Reference({"student": worker, "step": step})

    def get(self, reference: Reference, timeout: float, waiting_for: str) -> Any:
        self.waits.append((waiting_for, timeout))
        self.predictions_held.append(len(self.alive))
        value = reference.value
        if (value["student"], value["step"]) == self.fail:
            raise PeerError(f"{waiting_for}: its process died")
        self.log.append(("collect", value["step"]))
        return value

    def get_all(self, references: list[Reference], timeout: float, waiting_for: str) -> list[Any]:
        return [self.get(reference, timeout, waiting_for) for reference in references]

    def put(self, value: Any) -> Reference:
        return Reference(value)

    def ready(self, references: Any) -> list[Any]:
        return list(references)


def run(
    transport: Any,
    topology: Topology,
    steps: range | Mapping[int, range],
    steps_ahead: int = 3,
) -> list[tuple[int, StepFigures]]:
    """Everybody who learns at all over ``steps``, or each over its own."""
    seen: list[tuple[int, StepFigures]] = []
    train_steps(
        transport,
        [(worker,) for worker in range(topology.size)],
        topology,
        GENERATION,
        steps if isinstance(steps, Mapping) else dict.fromkeys(topology.students, steps),
        steps_ahead=steps_ahead,
        timeout=12.5,
        where="stage 1 (woz.en)",
        on_step=lambda step, figures: seen.append((step, figures)),
    )
    return seen


def test_every_student_forwards_and_then_learns_from_its_teachers() -> None:
    transport = Recorder()
    one_way = Topology(3, frozenset({(2, 0), (1, 0), (0, 1)}))
    run(transport, one_way, range(4, 6))
    teachers = {0: (1, 2), 1: (0,), 2: ()}
    readers = {0: (1,), 1: (0,), 2: (0,)}
    for student, calls in transport.calls.items():
        assert calls == [
            call
            for step in (4, 5)
            for call in (
                ("forward", GENERATION, step, readers[student]),
                ("backward", GENERATION, step, *(("predictions", j, step) for j in teachers[student])),
            )
        ]


def test_everyone_is_told_who_learns_from_it() -> None:
    transport = Recorder()
    run(transport, Topology(3, frozenset({(0, 1)})), range(1))
    asked = {student: calls[0] for student, calls in transport.calls.items()}
    assert asked == {student: ("forward", GENERATION, 0, (1,) if student == 0 else ()) for student in range(3)}


@pytest.mark.parametrize("students", [1, 3])
def test_a_teacher_that_does_not_learn_predicts_the_students_batch_once_for_all(students: int) -> None:
    transport = Recorder()
    run(transport, taught(students), range(2, 4))
    teacher = students
    assert transport.calls[teacher] == [("predict", GENERATION, step, 0, tuple(range(students))) for step in (2, 3)]
    for student in range(students):
        assert transport.calls[student] == [
            call
            for step in (2, 3)
            for call in (
                ("forward", GENERATION, step, ()),
                ("backward", GENERATION, step, ("predictions", teacher, step)),
            )
        ]


def test_a_student_whose_turn_it_is_asks_those_who_wait() -> None:
    """One at a time (Algorithm 1 of L4): the others learn nothing and predict this one's batch."""
    transport = Recorder()
    seen = run(transport, complete(3), {1: range(4, 6)})
    assert transport.calls[0] == transport.calls[2] == [("predict", GENERATION, step, 1, (1,)) for step in (4, 5)]
    assert transport.calls[1] == [
        call
        for step in (4, 5)
        for call in (
            ("forward", GENERATION, step, ()),
            ("backward", GENERATION, step, ("predictions", 0, step), ("predictions", 2, step)),
        )
    ]
    assert [(step, list(figures)) for step, figures in seen] == [(4, [1]), (5, [1])]


ranges = st.builds(lambda first, count: range(first, first + count), st.integers(0, 30), st.integers(0, 8))


@given(st.lists(ranges, min_size=1, max_size=4), st.integers(1, 5))
def test_independent_peers_go_over_their_own_steps(own: list[range], ahead: int) -> None:
    transport = Recorder()
    seen = run(transport, isolated(len(own)), dict(enumerate(own)), ahead)
    assert all(figures for _, figures in seen), "no step without figures"
    for peer, steps in enumerate(own):
        assert [step for step, figures in seen if peer in figures] == list(steps)
        assert [call[:3] for call in transport.calls.get(peer, [])] == [
            (method, GENERATION, step) for step in steps for method in ("forward", "backward")
        ]


def test_independent_peers_learn_at_the_same_time_wherever_their_steps_are() -> None:
    """Models trained on tasks of different sizes: in later epochs their numbers of steps have nothing in common."""
    order: list[int] = []

    class Ordered(Recorder):
        def submit(self, worker: int, method: str, *arguments: Any) -> Reference:
            order.append(worker)
            return super().submit(worker, method, *arguments)

    run(Ordered(), isolated(2), {0: range(10, 13), 1: range(100, 105)}, steps_ahead=1)
    assert order == [0, 1, 0, 1] * 3 + [1, 1] * 2


def test_all_forwards_of_a_step_are_submitted_before_its_first_backward() -> None:
    """Otherwise a student would wait for one that has not even been asked."""
    order: list[tuple[int, str]] = []

    class Ordered(Recorder):
        def submit(self, worker: int, method: str, *arguments: Any) -> Reference:
            order.append((worker, method))
            return super().submit(worker, method, *arguments)

    run(Ordered(), complete(3), range(1))
    assert order == [(i, "forward") for i in range(3)] + [(i, "backward") for i in range(3)]


@given(st.integers(1, 4), st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))
def test_figures_come_once_for_every_step_in_order(peers: int, first: int, count: int, ahead: int) -> None:
    steps = range(first, first + count)
    seen = run(Recorder(), complete(peers), steps, ahead)
    assert seen == [(step, {i: {"student": i, "step": step} for i in range(peers)}) for step in steps]


@given(st.integers(1, 4), st.integers(0, 12), st.integers(1, 5))
def test_the_window_is_as_wide_as_asked_and_no_wider(peers: int, count: int, ahead: int) -> None:
    """Step s is waited for as soon as step s + ahead is submitted, and before anything later is."""
    transport = Recorder()
    run(transport, complete(peers), range(count), ahead)
    log = [entry for i, entry in enumerate(transport.log) if i == 0 or transport.log[i - 1] != entry]
    for step in range(count):
        submitted = {s for what, s in log[: log.index(("collect", step))] if what == "submit"}
        assert max(submitted) == min(step + ahead, count - 1)


@given(st.integers(2, 4), st.integers(1, 12), st.integers(1, 5))
def test_predictions_are_not_held_once_they_are_handed_on(peers: int, count: int, ahead: int) -> None:
    transport = Recorder()
    run(transport, complete(peers), range(count), ahead)
    assert len(transport.predictions_held) == peers * count
    assert set(transport.predictions_held) == {0}


def test_waiting_is_bounded_and_says_for_whom() -> None:
    transport = Recorder()
    run(transport, complete(2), range(2))
    assert transport.waits == [
        (f"student {peer}, stage 1 (woz.en), step {step}", 12.5) for step in (0, 1) for peer in (0, 1)
    ]


def test_an_error_ends_the_loop_and_names_student_stage_and_step() -> None:
    transport = Recorder(fail=(1, 3))
    seen: list[int] = []
    with pytest.raises(PeerError, match=r"^student 1, stage 1 \(woz\.en\), step 3: its process died$"):
        train_steps(
            transport,
            [(0,), (1,)],
            complete(2),
            GENERATION,
            dict.fromkeys(range(2), range(100)),
            steps_ahead=2,
            timeout=1,
            where="stage 1 (woz.en)",
            on_step=lambda step, _: seen.append(step),
        )
    assert seen == [0, 1, 2], "no half of a step is shown"
    assert max(step for _, step in transport.log) == 5, "nothing is submitted after the error"


def test_an_error_of_the_caller_ends_the_loop_too() -> None:
    """This is how a run is stopped."""
    transport = Recorder()

    def stop(step: int, figures: StepFigures) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_steps(
            transport,
            [(0,)],
            isolated(1),
            GENERATION,
            {0: range(50)},
            steps_ahead=1,
            timeout=1,
            where="",
            on_step=stop,
        )
    assert max(step for _, step in transport.log) == 1


def test_ranks_of_a_peer_speak_with_those_of_the_same_number_and_count_as_one() -> None:
    transport, seen = Recorder(), []
    ranks = [(0, 1, 2), (10, 11, 12)]
    train_steps(
        transport,
        ranks,
        complete(2),
        GENERATION,
        dict.fromkeys(range(2), range(2)),
        steps_ahead=1,
        timeout=1,
        where="stage 1",
        on_step=lambda step, figures: seen.append((step, figures)),
    )
    for shard in range(3):
        for me, other in ((ranks[0][shard], ranks[1][shard]), (ranks[1][shard], ranks[0][shard])):
            backwards = [call for call in transport.calls[me] if call[0] == "backward"]
            assert backwards == [("backward", GENERATION, step, ("predictions", other, step)) for step in range(2)]
    assert seen == [(step, {0: {"student": 0, "step": step}, 1: {"student": 10, "step": step}}) for step in range(2)]
