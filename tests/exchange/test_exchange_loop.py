"""The loop of a stage on workers that write down what is asked of them, and the transport of one process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import PeerError
from ray_l4.exchange.loop import StepFigures, train_steps
from ray_l4.exchange.transports import InProcess
from ray_l4.methods import Topology, complete, isolated

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
        if method == "forward":
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

    def put(self, value: Any) -> Reference:
        return Reference(value)

    def ready(self, references: Any) -> list[Any]:
        return list(references)


def run(
    transport: Any, topology: Topology, steps: range, steps_ahead: int = 3, students: Any = None
) -> list[tuple[int, StepFigures]]:
    seen: list[tuple[int, StepFigures]] = []
    train_steps(
        transport,
        range(topology.size) if students is None else students,
        topology,
        GENERATION,
        steps,
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
    for student, calls in transport.calls.items():
        assert calls == [
            call
            for step in (4, 5)
            for call in (
                ("forward", GENERATION, step),
                ("backward", GENERATION, step, *(("predictions", j, step) for j in teachers[student])),
            )
        ]


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
    assert seen == [(step, [{"student": i, "step": step} for i in range(peers)]) for step in steps]


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
            range(2),
            complete(2),
            GENERATION,
            range(100),
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
            [0],
            isolated(1),
            GENERATION,
            range(50),
            steps_ahead=1,
            timeout=1,
            where="",
            on_step=stop,
        )
    assert max(step for _, step in transport.log) == 1


@dataclass
class Adder:
    """A worker of this process: sends its number and the step, and adds up what it gets."""

    number: int
    fails: Callable[[str, int], Exception | None] = lambda method, step: None
    done: list[tuple[str, int]] = field(default_factory=list)

    def forward(self, generation: int, step: int) -> int:
        return self._work("forward", step, 10 * self.number + step)

    def backward(self, generation: int, step: int, *sent: int) -> dict[str, float]:
        return {"sum": self._work("backward", step, sum(sent))}

    def _work(self, method: str, step: int, result: int) -> int:
        error = self.fails(method, step)
        if error is not None:
            raise error
        self.done.append((method, step))
        return result


def test_in_process_hands_values_from_worker_to_worker() -> None:
    seen = run(InProcess(), complete(3), range(2), students=[Adder(number) for number in range(3)])
    assert seen == [(0, [{"sum": 30}, {"sum": 20}, {"sum": 10}]), (1, [{"sum": 32}, {"sum": 22}, {"sum": 12}])]


def test_in_process_an_error_reaches_all_who_depend_on_it_and_nobody_else() -> None:
    def broken(method: str, step: int) -> Exception | None:
        return PeerError("student 0, stage 1, step 1: not finite") if (method, step) == ("forward", 1) else None

    # 0 teaches 1; nobody teaches 0 or 2.
    students = [Adder(0, broken), Adder(1), Adder(2)]
    with pytest.raises(PeerError, match="student 0, stage 1, step 1: not finite"):
        run(InProcess(), Topology(3, frozenset({(0, 1)})), range(2), students=students)
    assert ("backward", 1) not in students[1].done
    assert ("backward", 1) in students[2].done


def test_in_process_submit_keeps_errors_for_whoever_waits() -> None:
    transport = InProcess()
    failed = transport.submit(Adder(0, lambda method, step: PeerError("broken")), "forward", GENERATION, 0)
    dependant = transport.submit(Adder(1), "backward", GENERATION, 0, failed)
    assert transport.ready([failed, dependant]) == [failed, dependant]
    for reference in (failed, dependant):
        with pytest.raises(PeerError, match="broken"):
            transport.get(reference, 1, "student 1")


def test_in_process_a_defect_of_the_program_is_not_hidden() -> None:
    """Only errors that a user can mend travel; anything else stops where it happened, with its traceback."""
    with pytest.raises(ZeroDivisionError):
        InProcess().submit(Adder(0, lambda method, step: ZeroDivisionError()), "forward", GENERATION, 0)


def test_in_process_put_stores_one_value_for_all_readers() -> None:
    transport, value = InProcess(), [1, 2, 3]
    reference = transport.put(value)
    assert transport.get(reference, 1, "") is value
    assert transport.get(transport.submit([[1, 2, 3], []], "index", reference), 1, "") == 0, "workers get the value"


def test_in_process_references_are_told_apart_even_if_their_values_are_equal() -> None:
    """They are keys of the pool's table."""
    transport = InProcess()
    assert len({transport.put(1), transport.put(1), transport.put([])}) == 3
