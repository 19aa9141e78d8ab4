"""The soak's arithmetic: slopes, and scores that are missing or double. The run itself takes minutes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import soak
from ray_l4.store.records import write_score
from ray_l4.store.run_directory import Cell, RunDirectory

FINITE = st.floats(-100, 100)


@given(FINITE, FINITE, st.lists(st.integers(0, 1000), min_size=3, unique=True))
def test_a_line_has_its_slope_and_no_error(a: float, b: float, x: list[int]) -> None:
    found = soak.slope(x, [a + b * own for own in x])
    assert found.value == pytest.approx(b, abs=1e-6) and found.error == pytest.approx(0, abs=1e-5)


def test_the_standard_error_is_that_of_the_textbook() -> None:
    found = soak.slope([0, 1, 2, 3], [0, 2, 1, 3])
    assert found == pytest.approx((0.8, math.sqrt(1.8 / 2 / 5)))


def test_growth_leaves_out_the_start() -> None:
    early = [soak.Sample(0, 0, {"student VmRSS": 1e6}), soak.Sample(1, 100, {"student VmRSS": 400e6})]
    late = [soak.Sample(own, 100 * own, {"student VmRSS": 500e6 + 1e6 * own}) for own in range(3, 11)]
    assert soak.growth([*early, *late])["student VmRSS"].value == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("due", "lines", "right"), [(2, (0, 1), True), (3, (0, 1), False), (2, (0, 1, 1), False), (2, (0,), False)]
)
def test_a_score_that_is_missing_or_double_is_noticed(
    due: int, lines: tuple[int, ...], right: bool, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    for student in range(2):
        write_score(
            run,
            Cell(0, 1, student, "mini.sql"),
            {"task": "mini.sql", "headline": "em", "values": {"em": 1.0}},
            {"prediction": ["a"]},
        )
    (tmp_path / "logs").mkdir()
    log = [f"12:00:00 INFO student {student} after mini.sql, epoch 1: mini.sql lfem 12.5\n" for student in lines]
    (tmp_path / "logs" / "coordinator.log").write_text("".join(log) + "12:00:01 INFO stages done: 1 of 1\n")
    assert soak.count(run, due).is_right == right


def test_the_experiment_takes_at_least_the_scores_asked_for() -> None:
    for wanted in (1, 54, 3000):
        config = soak.experiment(wanted)
        assert len(config.stream) ** 2 * soak.STUDENTS * config.training.epochs >= wanted
