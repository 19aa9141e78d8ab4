"""Whichever planned phase comes first is next; rare phases go before those that come again; a resume needs a death."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from analysis.faults.choice import Choice
from analysis.faults.fault import Fault
from analysis.faults.watching import PAUSE, Watching

FORWARD, SCORING = Fault("kill", "student", "forward"), Fault("stop", "evaluator", "scoring")
REPLAY, RESUME = Fault("kill", "gcs", "replay"), Fault("kill", "student", "resume")


class Clock(Watching):
    """A watch over a run whose phases are a matter of how often one has looked."""

    def __init__(self) -> None:
        self.looks = 0

    def until(self, condition: Callable[[], bool], limit: float, pause: float = PAUSE) -> bool:
        for _ in range(round(limit * 10)):  # ten looks a second
            self.looks += 1
            if condition():
                return True
        return False

    def wait(self, seconds: float) -> None:
        self.looks += 1


def chosen(
    pending: list[Fault], phases: dict[str, range], seed: int = 0, delay: float = 0.5
) -> tuple[Fault, int] | None:
    """Return what is chosen if a phase is there at the looks of its range; the victim is the number of the look."""
    clock = Clock()
    choice = Choice(
        clock,
        lambda fault: [clock.looks] if clock.looks in phases.get(fault.phase, range(0)) else [],
        lambda phase: delay,
        random.Random(seed),
    )
    return choice.next(pending, 20.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_phase_that_comes_first_is_next_whatever_the_order_of_the_plan(seed: int) -> None:
    found = chosen([REPLAY, SCORING, FORWARD], {"forward": range(20, 90), "scoring": range(100, 120)}, seed)
    assert found is not None and found[0] == FORWARD
    assert found[1] > 20, "not only the first moment of a phase"


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_phase_goes_before_one_that_comes_again(seed: int) -> None:
    both = {"forward": range(10, 90), "replay": range(12, 30)}
    found = chosen([FORWARD, REPLAY], both, seed)
    assert found is not None and found[0] == REPLAY


def test_a_phase_that_is_over_before_its_moment_is_no_choice() -> None:
    assert chosen([REPLAY], {"replay": range(10, 12)}) is None
    assert chosen([REPLAY], {}) is None


def test_before_a_fault_in_resume_the_command_is_killed_unless_another_fault_ends_the_session() -> None:
    training = {"forward": range(5, 90), "exchange": range(5, 90), "backward": range(5, 90)}
    found = chosen([RESUME], training)
    assert found is not None and (found[0].what, found[0].whom) == ("kill", "command")
    assert chosen([RESUME, REPLAY], training) is None, "the death of the GCS in replay will do"
