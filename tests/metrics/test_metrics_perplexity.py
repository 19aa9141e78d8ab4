"""Perplexity, with values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.metrics.perplexity import perplexity


def test_values_by_hand() -> None:
    assert perplexity(0.0, 3) == 1.0
    assert perplexity(3 * math.log(7), 3) == pytest.approx(7.0), "seven equally likely tokens each time"
    assert perplexity(math.log(2) + math.log(8), 2) == pytest.approx(4.0), "the geometric mean"


def test_what_a_float_cannot_hold() -> None:
    assert perplexity(1e6, 1) == math.inf
    assert perplexity(math.inf, 5) == math.inf
    assert math.isnan(perplexity(math.nan, 5))


@given(st.floats(0, 100), st.integers(1, 50), st.integers(1, 5))
def test_repeating_a_text_changes_nothing(nll: float, predicted: int, times: int) -> None:
    assert perplexity(times * nll, times * predicted) == pytest.approx(perplexity(nll, predicted))
