"""How often something is started again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.run.restart_budget import RestartBudget, RestartsSpentError, progress_on_disk


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


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("checkpoints/stage-0/epoch-1/student-0/model.safetensors", True),
        ("checkpoints/stage-0/epoch-1/.student-0.17-ab.part/model.safetensors", False),
        ("states/stage-0.steps-10/position.json", True),
        ("states/.stage-0.steps-10.17-ab.part/position.json", False),
        ("replay/stage-1.chunks/4.parquet", True),
        ("replay/.stage-1.parquet.17-ab.part", False),
        ("teachers/scores/a.json", True),
        ("guards/stage-0.student-0.safetensors", True),
        ("guards/SHA256SUMS", False),
        ("logs/coordinator.log", False),
    ],
)
def test_results_are_progress_and_temporary_files_are_not(name: str, counts: bool, tmp_path: Path) -> None:
    """A process that dies each time that it writes leaves another temporary file each time."""
    before = progress_on_disk(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert (progress_on_disk(tmp_path) != before) == counts
