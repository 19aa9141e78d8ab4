"""A real student in this process: which calls it serves, and which it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ray_l4.errors import PeerError
from ray_l4.exchange.links import Ticket
from ray_l4.methods import complete, get_method
from ray_l4.setup.setup import Setup
from ray_l4.workers.student import Student
from tests.learner import learner_fixtures as small
from tests.run.run_fixtures import cluster

CALLS: dict[str, Callable[[Student, int, int], object]] = {
    "forward": lambda student, fence, step: student.forward(fence, step, (1,)),
    "predict": lambda student, fence, step: student.predict(fence, step, 1, (1,), at_once=True),
    "backward": lambda student, fence, step: student.backward(fence, step, Ticket(0)),
}


def student(method: str = "l4") -> Student:
    """Student 0 of two, with a tiny model."""
    setup = Setup(small.experiment(method=method), get_method(method), complete(2), small.tokenizer(), 64, {}, {})
    return Student(0, setup, cluster("in_process"))


@pytest.fixture
def begun() -> Student:
    """A student that has begun a stage under fence 2."""
    own = student()
    assert own.begin(2, 1, small.tokens(small.tokenizer())) == [2, 5], "eleven examples in batches of four, two epochs"
    return own


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fence", [0, 1, 3])
def test_a_call_with_another_fence_is_refused(begun: Student, call: str, fence: int) -> None:
    own = begun.forward(2, 0, ())
    with pytest.raises(PeerError, match=rf"student 0: refused a call with fence {fence}; it serves fence 2"):
        CALLS[call](begun, fence, 0)
    assert begun.backward(2, 0, own)["loss"] > 0, "the step under way is untouched"
    assert begun.forward(2, 1, ()).sender == 0


@pytest.mark.parametrize("call", CALLS)
def test_a_call_before_a_stage_was_begun_is_refused(call: str) -> None:
    with pytest.raises(PeerError, match="student 0: asked for a step before a stage began"):
        CALLS[call](student(), 0, 0)


def test_after_rejoining_the_old_fence_is_refused_and_the_step_under_way_is_repeated(begun: Student) -> None:
    begun.backward(2, 0, begun.forward(2, 0, ()))
    late = begun.forward(2, 1, ())
    assert begun.rejoin(3) == 1
    for call in (lambda: begun.backward(2, 1, late), lambda: begun.forward(2, 1, ())):
        with pytest.raises(PeerError, match="refused a call with fence 2; it serves fence 3"):
            call()
    figures = begun.backward(3, 1, begun.forward(3, 1, ()))
    undisturbed = student()
    undisturbed.begin(1, 1, small.tokens(small.tokenizer()))
    expected = [undisturbed.backward(1, step, undisturbed.forward(1, step, ())) for step in range(2)]
    assert figures["loss"] == expected[1]["loss"] and figures["grad_norm"] == expected[1]["grad_norm"]
    assert begun.rejoin(4) == 2


def test_rejoining_before_a_stage_was_begun_is_possible() -> None:
    own = student()
    assert own.rejoin(1) == 0
    with pytest.raises(PeerError, match="before a stage began"):
        own.forward(1, 0, ())


def test_reset_brings_back_the_weights_of_the_start_and_leaves_the_stage(begun: Student) -> None:
    start = begun.weights().copy()
    begun.backward(2, 0, begun.forward(2, 0, ()))
    assert (begun.weights() != start).any()
    begun.reset()
    assert (begun.weights() == start).all()
    with pytest.raises(PeerError, match="before a stage began"):
        begun.forward(2, 1, ())


def test_the_ticket_of_another_student_is_not_taken_as_one_s_own(begun: Student) -> None:
    begun.forward(2, 0, ())
    with pytest.raises(PeerError, match="student 0, step 0: got the ticket of student 1 instead of its own"):
        begun.backward(2, 0, Ticket(1))


def test_steps_out_of_order_are_refused(begun: Student) -> None:
    with pytest.raises(PeerError, match="backward was called before forward"):
        begun.backward(2, 0, Ticket(0))
    with pytest.raises(PeerError, match="forward was called out of order; expected forward of step 0"):
        begun.forward(2, 1, ())
    begun.forward(2, 0, ())
    with pytest.raises(PeerError, match="out of order; expected backward of step 0"):
        begun.forward(2, 0, ())


def test_a_student_without_a_guard_has_nothing_to_consolidate(begun: Student) -> None:
    assert begun.consolidate() is None
    assert student("ewc").consolidate() is None, "a guard that has seen no stage"


def test_without_ray_a_student_keeps_no_log(begun: Student) -> None:
    """The run's own log gets its lines at once."""
    assert begun.take_log() == []
