"""The bootstrap interval of a mean: a worked value, and what holds for any sample."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.metrics.bootstrap import FEWEST, mean_interval

samples = st.lists(st.floats(-100, 100), min_size=FEWEST, max_size=12)


def interval(values: Sequence[float]) -> tuple[float, float]:
    found = mean_interval(values)
    assert found is not None
    return found


def test_a_worked_value() -> None:
    """5 of the 256 samples from 0, 1, 2, 3 (2.0 %) have a sum of at most 1, and 15 (5.9 %) one of at most 2.

    So 2.5 % of the means end at 2/4; by symmetry the upper end is at 10/4.
    """
    sums = [sum(sample) for sample in itertools.product(range(4), repeat=4)]
    assert [sum(total <= end for total in sums) for end in (1, 2)] == [5, 15]
    assert mean_interval([0, 1, 2, 3]) == (0.5, 2.5)


def test_of_three_values_it_is_their_range() -> None:
    """Each of the extreme samples has a probability of 1/27, more than 2.5 %: why docs call it narrow for few pairs."""
    assert mean_interval([4.0, -1.0, 2.0]) == (-1.0, 4.0)


def test_fewer_values_have_none() -> None:
    assert [mean_interval([1.0] * count) for count in range(FEWEST)] == [None] * FEWEST


def test_it_is_close_to_the_textbook_s_for_many_normal_values() -> None:
    draw = random.Random(0)
    values = [draw.gauss(5.0, 2.0) for _ in range(400)]
    mean = sum(values) / len(values)
    error = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5 / len(values) ** 0.5
    assert interval(values) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)


@given(samples)
def test_it_holds_the_mean_and_lies_within_the_sample(values: list[float]) -> None:
    low, high = interval(values)
    assert min(values) - 1e-9 <= low <= sum(values) / len(values) + 1e-9
    assert sum(values) / len(values) - 1e-9 <= high <= max(values) + 1e-9


@given(samples, st.floats(-100, 100), st.floats(-10, 10))
def test_it_moves_and_grows_with_the_values(values: list[float], shift: float, scale: float) -> None:
    ends = sorted(scale * end + shift for end in interval(values))
    assert interval([scale * value + shift for value in values]) == pytest.approx(ends, abs=1e-6)


@given(st.floats(-100, 100), st.integers(FEWEST, 20))
def test_equal_values_have_an_interval_without_width(value: float, count: int) -> None:
    assert interval([value] * count) == pytest.approx((value, value), abs=1e-9)


@given(samples)
def test_it_is_the_same_every_time(values: list[float]) -> None:
    assert mean_interval(values) == mean_interval(tuple(values))
