"""The transport of one process, by itself and under the loop of a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from ray_l4.cluster.rpc import InProcess
from ray_l4.errors import PeerError
from ray_l4.methods import Topology, complete
from ray_l4.run.step_loop import StepFigures, train_steps

GENERATION = 5


@dataclass
class Adder:
    """A worker of this process: sends its number and the step, and adds up what it gets."""

    number: int
    fails: Callable[[str, int], Exception | None] = lambda method, step: None
    done: list[tuple[str, int]] = field(default_factory=list)

    def forward(self, generation: int, step: int, readers: Sequence[int] = ()) -> int:
        return self._work("forward", step, 10 * self.number + step)

    def backward(self, generation: int, step: int, *sent: int) -> dict[str, float]:
        return {"sum": self._work("backward", step, sum(sent))}

    def _work(self, method: str, step: int, result: int) -> int:
        error = self.fails(method, step)
        if error is not None:
            raise error
        self.done.append((method, step))
        return result


def run(topology: Topology, students: Sequence[Adder]) -> list[tuple[int, StepFigures]]:
    """Two steps of all students."""
    seen: list[tuple[int, StepFigures]] = []
    train_steps(
        InProcess(),
        [(student,) for student in students],
        topology,
        GENERATION,
        dict.fromkeys(topology.students, range(2)),
        steps_ahead=3,
        timeout=1,
        where="stage 1",
        on_step=lambda step, figures: seen.append((step, figures)),
    )
    return seen


def test_in_process_hands_values_from_worker_to_worker() -> None:
    seen = run(complete(3), [Adder(number) for number in range(3)])
    expected = {0: (30, 20, 10), 1: (32, 22, 12)}
    assert seen == [(step, {i: {"sum": value} for i, value in enumerate(sums)}) for step, sums in expected.items()]


def test_in_process_an_error_reaches_all_who_depend_on_it_and_nobody_else() -> None:
    def broken(method: str, step: int) -> Exception | None:
        return PeerError("student 0, stage 1, step 1: not finite") if (method, step) == ("forward", 1) else None

    # 0 teaches 1; nobody teaches 0 or 2.
    students = [Adder(0, broken), Adder(1), Adder(2)]
    with pytest.raises(PeerError, match="student 0, stage 1, step 1: not finite"):
        run(Topology(3, frozenset({(0, 1)})), students)
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
