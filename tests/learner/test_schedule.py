"""The learning rate over a stage: worked values (REFERENCE.md#worked-values) and shape (REFERENCE.md#schedule)."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.config.experiment import OptimConfig
from ray_l4.learner.schedule import learning_rate

CONFIG = OptimConfig()


def test_worked_values() -> None:
    """N = 2,536, E = 9, batch 4, so the warm-up takes 12 examples."""
    first = [learning_rate(4 * step, 2536, 9, CONFIG) for step in range(5)]
    assert first[:4] == pytest.approx([0.0, 2.0833e-5, 4.1667e-5, 6.25e-5], rel=2e-5)
    assert first[0] == 0.0
    assert first[3] == 6.25e-5 > first[4] > 6.248e-5
    assert learning_rate(2536 * 9, 2536, 9, CONFIG) == pytest.approx(3.28601e-8, rel=2e-6)


@settings(max_examples=200, deadline=None)
@given(num_examples=st.integers(1, 5000), epochs=st.integers(1, 12), per_mille=st.integers(0, 1000), data=st.data())
def test_the_rate_equals_the_formula_in_exact_fractions(
    num_examples: int, epochs: int, per_mille: int, data: st.DataObject
) -> None:
    config = OptimConfig(warmup=per_mille / 1000)
    i = data.draw(st.integers(0, num_examples * epochs))
    W, D = int(per_mille / 1000 * num_examples), num_examples * epochs
    factor = Fraction(i, W) if W > 0 and i <= W else Fraction(D - (i - W), D)
    assert learning_rate(i, num_examples, epochs, config) == pytest.approx(config.lr * float(factor), rel=1e-12)


@pytest.mark.parametrize("num_examples", [1, 199, 200, 201, 2536, 3043, 138_000])
def test_the_rate_rises_to_its_peak_then_falls_linearly(num_examples: int) -> None:
    warmup = num_examples // 200  # REFERENCE.md#schedule: floor(0.005 N)
    rates = [learning_rate(i, num_examples, 3, CONFIG) for i in range(min(3 * num_examples, 5000) + 1)]
    assert max(rates) == CONFIG.lr == rates[warmup]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    end = learning_rate(3 * num_examples, num_examples, 3, CONFIG)
    assert end == pytest.approx(CONFIG.lr * warmup / (3 * num_examples))


def test_without_warmup_the_rate_falls_from_its_peak_to_zero() -> None:
    config = OptimConfig(warmup=0.0, lr=1e-3)
    assert learning_rate(0, 100, 2, config) == 1e-3
    assert learning_rate(200, 100, 2, config) == 0.0


@pytest.mark.parametrize(("seen", "num_examples", "epochs"), [(-1, 10, 2), (21, 10, 2), (0, 0, 2), (0, 10, 0)])
def test_a_position_outside_the_stage_is_refused(seen: int, num_examples: int, epochs: int) -> None:
    with pytest.raises(ValueError, match=f"after {seen} examples of a stage of {num_examples} examples"):
        learning_rate(seen, num_examples, epochs, CONFIG)
