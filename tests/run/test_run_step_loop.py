"""The loop of a stage, on workers that write down what they are asked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.cluster.rpc import LocalRpc
from ray_l4.errors import PeerError
from ray_l4.methods import Topology, complete, isolated, taught
from ray_l4.run.step_loop import StepFigures, StepRules, train_steps
from ray_l4.workers.calls import StudentCalls
from tests.run.run_fixtures import handles, train
from tests.run.worker_fixtures import FENCE, StandIn


@dataclass(frozen=True, eq=False)
class Reference:
    """The result of a call; ``value`` is known at once."""

    value: Any


@dataclass
class Recorder:
    """An RPC that records every call with its arguments' values, what is waited for, and what is still held."""

    calls: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)
    log: list[tuple[str, int]] = field(default_factory=list)
    """Every submitted and collected step, in order."""
    waits: list[tuple[str, float]] = field(default_factory=list)
    alive: weakref.WeakSet[Reference] = field(default_factory=weakref.WeakSet)
    predictions_held: list[int] = field(default_factory=list)
    """How many references to predictions were alive whenever figures were waited for."""
    num_pairs: int = 0
    """How often two calls were made in one."""
    fail: tuple[int, int] | None = None
    """Student and step whose backward fails."""

    def call(self, worker: int, method: Callable[..., Any], *arguments: Any) -> Reference:
        values = [a.value if isinstance(a, Reference) else a for a in arguments]
        self.calls.setdefault(worker, []).append((method.__name__, *values))
        fence, step = values[:2]
        assert fence == FENCE
        if method.__name__ in ("forward", "predict"):
            reference = Reference(("predictions", worker, step))
            self.alive.add(reference)
            return reference
        self.log.append(("submit", step))
        return Reference({"student": worker, "step": step})

    def call_for_two(self, worker: int, method: Callable[..., Any], *arguments: Any) -> tuple[Reference, Reference]:
        """Record ``advance`` as what it does: ``backward`` of a step, and ``forward`` of the next one."""
        assert method is StudentCalls.advance
        self.num_pairs += 1
        fence, step, readers, *tickets = arguments
        learned = self.call(worker, StudentCalls.backward, fence, step, *tickets)
        return learned, self.call(worker, StudentCalls.forward, fence, step + 1, readers)

    def get_all(self, references: Mapping[str, Sequence[Reference]], timeout: float) -> dict[str, list[Any]]:
        return {who: [self._get(own, timeout, who) for own in owns] for who, owns in references.items()}

    def _get(self, reference: Reference, timeout: float, waiting_for: str) -> Any:
        self.waits.append((waiting_for, timeout))
        self.predictions_held.append(len(self.alive))
        value = reference.value
        if (value["student"], value["step"]) == self.fail:
            raise PeerError(f"{waiting_for}: its process died")
        self.log.append(("collect", value["step"]))
        return value

    def put(self, value: Any) -> Reference:
        return Reference(value)

    def ready(self, references: Any) -> list[Any]:
        return list(references)

    def end(self, worker: Any) -> None:
        raise AssertionError("the loop ends nobody")


def run(
    rpc: Any, topology: Topology, steps: range | Mapping[int, range], steps_ahead: int = 3
) -> list[tuple[int, StepFigures]]:
    """Train all students over ``steps``, or each over its own. Their workers are numbers."""
    students = handles(rpc, [(worker,) for worker in range(topology.size)])
    return train(students, topology, steps, StepRules(steps_ahead, timeout=12.5))


def test_every_student_forwards_and_then_learns_from_its_teachers() -> None:
    recorder = Recorder()
    one_way = Topology(3, frozenset({(2, 0), (1, 0), (0, 1)}))
    run(recorder, one_way, range(4, 6))
    teachers = {0: (1, 2), 1: (0,), 2: ()}
    readers = {0: (1,), 1: (0,), 2: (0,)}
    for student, calls in recorder.calls.items():
        assert calls == [
            call
            for step in (4, 5)
            for call in (
                ("forward", FENCE, step, readers[student]),
                ("backward", FENCE, step, *(("predictions", j, step) for j in (student, *teachers[student]))),
            )
        ]


def test_every_student_is_told_who_learns_from_it() -> None:
    recorder = Recorder()
    run(recorder, Topology(3, frozenset({(0, 1)})), range(1))
    asked = {student: calls[0] for student, calls in recorder.calls.items()}
    assert asked == {student: ("forward", FENCE, 0, (1,) if student == 0 else ()) for student in range(3)}


@pytest.mark.parametrize("students", [1, 3])
def test_a_teacher_that_does_not_learn_predicts_the_students_batch_once_for_all(students: int) -> None:
    recorder = Recorder()
    run(recorder, taught(students), range(2, 4))
    teacher = students
    assert recorder.calls[teacher] == [
        ("predict", FENCE, step, 0, tuple(range(students)), True, None) for step in (2, 3)
    ]
    for student in range(students):
        assert recorder.calls[student] == [
            call
            for step in (2, 3)
            for call in (
                ("forward", FENCE, step, ()),
                ("backward", FENCE, step, ("predictions", student, step), ("predictions", teacher, step)),
            )
        ]


def test_a_student_whose_turn_it_is_learns_from_those_that_wait() -> None:
    """One at a time (Algorithm 1 of L4): the others learn nothing and predict this one's batch."""
    recorder = Recorder()
    seen = run(recorder, complete(3), {1: range(4, 6)})
    assert recorder.calls[0] == recorder.calls[2] == [("predict", FENCE, step, 1, (1,), True, None) for step in (4, 5)]
    assert recorder.calls[1] == [
        call
        for step in (4, 5)
        for call in (
            ("forward", FENCE, step, ()),
            ("backward", FENCE, step, *(("predictions", j, step) for j in (1, 0, 2))),
        )
    ]
    assert [(step, list(figures)) for step, figures in seen] == [(4, [1]), (5, [1])]


def test_teachers_that_are_asked_predict_one_student_s_batch_at_a_time_and_see_its_ticket() -> None:
    recorder = Recorder()
    students = handles(recorder, [(worker,) for worker in range(3)])
    train(students, complete(3), range(4, 6), StepRules(3, 12.5, asks_teachers=True))
    for student, calls in recorder.calls.items():
        others = [peer for peer in range(3) if peer != student]
        assert calls == [
            call
            for step in (4, 5)
            for call in (
                ("forward", FENCE, step, ()),
                *(("predict", FENCE, step, peer, (peer,), False, ("predictions", peer, step)) for peer in others),
                ("backward", FENCE, step, *(("predictions", peer, step) for peer in (student, *others))),
            )
        ]


def test_a_frozen_teacher_that_is_asked_predicts_at_once_and_for_each_student() -> None:
    recorder = Recorder()
    students = handles(recorder, [(worker,) for worker in range(3)])
    train(students, taught(2), range(1), StepRules(3, 12.5, asks_teachers=True))
    assert recorder.calls[2] == [
        ("predict", FENCE, 0, peer, (peer,), True, ("predictions", peer, 0)) for peer in (0, 1)
    ]


ranges = st.builds(lambda first, count: range(first, first + count), st.integers(0, 30), st.integers(0, 8))


@given(st.lists(ranges, min_size=1, max_size=4), st.integers(1, 5))
def test_independent_peers_go_over_their_own_steps(own: list[range], ahead: int) -> None:
    recorder = Recorder()
    seen = run(recorder, isolated(len(own)), dict(enumerate(own)), ahead)
    assert all(figures for _, figures in seen), "no step without figures"
    for peer, steps in enumerate(own):
        assert [step for step, figures in seen if peer in figures] == list(steps)
        assert [call[:3] for call in recorder.calls.get(peer, [])] == [
            (method, FENCE, step) for step in steps for method in ("forward", "backward")
        ]


def test_independent_peers_learn_at_the_same_time_wherever_their_steps_are() -> None:
    """Models that are trained on tasks of different sizes have different step numbers in later epochs."""
    order: list[int] = []

    class Ordered(Recorder):
        def call(self, worker: int, method: Callable[..., Any], *arguments: Any) -> Reference:
            order.append(worker)
            return super().call(worker, method, *arguments)

    run(Ordered(), isolated(2), {0: range(10, 13), 1: range(100, 105)}, steps_ahead=1)
    assert order == [0, 1] + [0, 0, 1, 1] * 2 + [0, 1, 1] + [1, 1] + [1]


def test_all_forwards_of_a_step_are_submitted_before_its_first_backward() -> None:
    """Otherwise a student would wait for one that has not even been asked."""
    order: list[tuple[int, str]] = []

    class Ordered(Recorder):
        def call(self, worker: int, method: Callable[..., Any], *arguments: Any) -> Reference:
            order.append((worker, method.__name__))
            return super().call(worker, method, *arguments)

    run(Ordered(), complete(3), range(1))
    assert order == [(i, "forward") for i in range(3)] + [(i, "backward") for i in range(3)]


@given(st.integers(1, 4), st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))
def test_figures_come_once_for_every_step_in_order(peers: int, first: int, count: int, ahead: int) -> None:
    steps = range(first, first + count)
    seen = run(Recorder(), complete(peers), steps, ahead)
    assert seen == [(step, {i: {"student": i, "step": step} for i in range(peers)}) for step in steps]


@given(st.integers(1, 4), st.integers(0, 12), st.integers(1, 5))
def test_the_window_is_as_wide_as_asked_and_no_wider(peers: int, count: int, ahead: int) -> None:
    """The loop waits only once more than ``ahead`` steps are under way, or if no step is left to submit."""
    recorder = Recorder()
    run(recorder, complete(peers), range(count), ahead)
    under_way, submitted = set[int](), set[int]()
    for index, (what, step) in enumerate(recorder.log):
        if what == "submit":
            under_way.add(step)
            submitted.add(step)
        elif recorder.log[index - 1][0] == "submit":
            assert len(under_way) == ahead + 1 or submitted == set(range(count))
        if what == "collect":
            under_way.discard(step)
        assert len(under_way) <= ahead + 1
    assert not under_way


@given(st.integers(2, 4), st.integers(1, 12), st.integers(1, 5))
def test_only_the_predictions_of_the_next_step_are_held(peers: int, count: int, ahead: int) -> None:
    recorder = Recorder()
    run(recorder, complete(peers), range(count), ahead)
    assert len(recorder.predictions_held) == peers * count
    assert max(recorder.predictions_held) <= peers
    assert recorder.predictions_held[-1] == 0


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5))
def test_a_step_takes_one_call_of_each_student(peers: int, count: int, ahead: int) -> None:
    """Except for the first one, whose forward pass nothing precedes."""
    recorder = Recorder()
    run(recorder, complete(peers), range(count), ahead)
    recorded = sum(len(calls) for calls in recorder.calls.values())
    assert recorded - recorder.num_pairs == peers * (count + 1)


def test_every_wait_is_bounded_and_names_student_stage_and_step() -> None:
    recorder = Recorder()
    run(recorder, complete(2), range(2))
    assert recorder.waits == [
        (f"student {peer}, stage 1 (woz.en), step {step}, figures", 12.5) for step in (0, 1) for peer in (0, 1)
    ]


def test_an_error_ends_the_loop_and_names_student_stage_and_step() -> None:
    recorder = Recorder(fail=(1, 3))
    seen: list[int] = []
    with pytest.raises(PeerError, match=r"^student 1, stage 1 \(woz\.en\), step 3, figures: its process died$"):
        train_steps(
            handles(recorder, [(0,), (1,)]),
            complete(2),
            FENCE,
            dict.fromkeys(range(2), range(100)),
            StepRules(steps_ahead=2, timeout=1),
            where="stage 1 (woz.en)",
            on_step=lambda step, _: seen.append(step),
        )
    assert seen == [0, 1, 2], "no half of a step is shown"
    assert max(step for _, step in recorder.log) <= 5, "nothing is submitted after the error"


def test_an_error_in_on_step_ends_the_loop() -> None:
    """A run is stopped this way."""
    recorder = Recorder()

    def stop(step: int, figures: StepFigures) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_steps(
            handles(recorder, [(0,)]),
            isolated(1),
            FENCE,
            {0: range(50)},
            StepRules(steps_ahead=1, timeout=1),
            where="",
            on_step=stop,
        )
    assert max(step for _, step in recorder.log) == 1


def test_ranks_exchange_tickets_with_ranks_of_the_same_number_and_a_student_counts_once() -> None:
    recorder = Recorder()
    ranks = [(0, 1, 2), (10, 11, 12)]
    seen = train(handles(recorder, ranks), complete(2), range(2), StepRules(steps_ahead=1, timeout=1))
    for rank in range(3):
        for me, other in ((ranks[0][rank], ranks[1][rank]), (ranks[1][rank], ranks[0][rank])):
            backwards = [call for call in recorder.calls[me] if call[0] == "backward"]
            assert backwards == [
                ("backward", FENCE, step, ("predictions", me, step), ("predictions", other, step)) for step in range(2)
            ]
    assert seen == [(step, {0: {"student": 0, "step": step}, 1: {"student": 10, "step": step}}) for step in range(2)]


# --- with values that really travel


def test_predictions_go_from_student_to_student() -> None:
    seen = train(handles(LocalRpc(), [(StandIn(number),) for number in range(3)]), complete(3))
    expected = {0: (30, 20, 10), 1: (32, 22, 12)}
    assert seen == [(step, {i: {"sum": value} for i, value in enumerate(sums)}) for step, sums in expected.items()]


def test_an_error_reaches_those_who_depend_on_it_and_nobody_else() -> None:
    """Student 0 teaches 1; nobody teaches 0 or 2."""
    students = [StandIn(0), StandIn(1), StandIn(2)]
    students[0].fail("forward", PeerError("student 0, stage 1, step 1: not finite"), step=1)
    with pytest.raises(PeerError, match=r"^student 0, stage 1, step 1: not finite$"):
        train(handles(LocalRpc(), [(student,) for student in students]), Topology(3, frozenset({(0, 1)})))
    assert ("backward", 1) not in students[0].done
    assert ("backward", 1) not in students[1].done
    assert ("backward", 1) in students[2].done
