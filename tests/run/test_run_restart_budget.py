"""How often something is started again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.run.restart_budget import RestartBudget, RestartsSpentError


def spend_all(budget: RestartBudget, progress: object) -> list[float]:
    """The waits until the budget is used up."""
    waits: list[float] = []
    with pytest.raises(RestartsSpentError, match=r"restarts\.most"):
        while len(waits) < 1000:
            waits.append(budget.spend(progress))
    return waits


@given(most=st.integers(0, 80), backoff=st.floats(0.0, 1e6), markers=st.lists(st.integers(), unique=True, max_size=5))
def test_progress_gives_back_the_whole_budget(most: int, backoff: float, markers: list[int]) -> None:
    budget = RestartBudget(most, backoff)
    for marker in markers:
        waits = spend_all(budget, marker)
        assert len(waits) == most
        assert waits == sorted(waits) and waits[:1] in ([], [0.0]) and max(waits, default=0.0) <= 60.0


def test_the_wait_doubles() -> None:
    assert spend_all(RestartBudget(5, 1.0), "stage 1") == [0.0, 1.0, 2.0, 4.0, 8.0]


def test_a_place_that_was_reached_before_is_no_progress() -> None:
    """Else two faults that alternate would go on for ever."""
    budget = RestartBudget(2, 1.0)
    assert [budget.spend(1), budget.spend(2)] == [0.0, 0.0]
    assert budget.spend(1) == 1.0
    with pytest.raises(RestartsSpentError):
        budget.spend(2)
