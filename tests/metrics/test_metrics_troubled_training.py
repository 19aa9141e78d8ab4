"""Training that goes wrong is noticed once, and training that goes well never."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.metrics.troubled_training import WINDOW, Trouble, TroubledTraining

Figures = dict[int, dict[str, float]]
STEPS = 300


def watched(steps: Sequence[Figures], *, taught: bool = True) -> list[Trouble]:
    watch = TroubledTraining(0.5, range(9) if taught else ())
    return [trouble for step, figures in enumerate(steps) for trouble in watch.add(step, figures)]


def curve(loss: Callable[[int], float], distance: Callable[[int], float] = lambda _: 0.3) -> list[dict[str, float]]:
    return [{"nll_qa": loss(t), "nll_lm": loss(t), "kd_qa": distance(t), "kd_lm": distance(t)} for t in range(STEPS)]


def together(*students: Sequence[dict[str, float]]) -> list[Figures]:
    return [dict(enumerate(rows)) for rows in zip(*students, strict=True)]


def healthy(t: int) -> float:
    return 0.1 + 4 * math.exp(-t / 60)


RISING = curve(lambda t: healthy(t) if t < 150 else 3.0)
STUCK = curve(lambda t: 4.2 + 1e-3 * t)
GOOD = curve(healthy)
CASES: dict[str, tuple[list[Figures], set[tuple[str, int]]]] = {
    "one of two rises": (together(GOOD, RISING), {("divergence", 1)}),
    "one of three rises": (together(RISING, GOOD, GOOD), {("divergence", 0)}),
    "one never learns": (together(GOOD, STUCK), {("divergence", 1)}),
    "one explodes at once and is still far behind": (
        together(GOOD, curve(lambda t: 4 + 60 * math.exp(-t / 40))),
        {("divergence", 1)},
    ),
    "one learns more slowly": (together(GOOD, curve(lambda t: 0.2 + 4 * math.exp(-t / 100))), set()),
    "a student alone forgets all that it learned": (
        together(curve(lambda t: healthy(t) if t < 150 else 5.0)),
        {("divergence", 0)},
    ),
    "all forget all": (
        together(*2 * [curve(lambda t: healthy(t) if t < 150 else 5.0)]),
        {("divergence", 0), ("divergence", 1)},
    ),
    "a hard part of the data, for all": (together(*2 * [curve(lambda t: 0.5 if 100 < t < 140 else 0.4)]), set()),
    "nothing is learned by anybody": (together(STUCK, STUCK), set()),
    "equal peers": (together(*2 * [curve(healthy, lambda _: 1e-9)]), {("collapse", 0), ("collapse", 1)}),
    "nothing left to learn": (together(*2 * [curve(lambda _: 0.001, lambda _: 1e-9)]), set()),
    "a spike": (together(GOOD, curve(lambda t: 20.0 if t == 200 else healthy(t))), set()),
    "an infinite loss that was skipped": (together(GOOD, curve(lambda t: math.inf if t == 200 else healthy(t))), set()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_trouble_is_noticed_once_for_each_student_and_kind(case: str) -> None:
    steps, expected = CASES[case]
    found = watched(steps)
    assert sorted((own.kind, own.student) for own in found) == sorted(expected)
    assert all("expected: " in own.text and "(median of" in own.text for own in found)


def test_divergence_is_noticed_within_a_few_windows_of_its_beginning() -> None:
    (found,) = watched(together(GOOD, RISING))
    assert 150 < found.step <= 150 + 3 * WINDOW
    assert "its loss on labels is" in found.text
    assert "that of its best peer is" in found.text


def test_peers_that_learn_from_nobody_cannot_collapse() -> None:
    assert not watched(together(*2 * [curve(healthy, lambda _: 0.0)]), taught=False)


@given(
    peers=st.integers(1, 4),
    start=st.floats(0.5, 12),
    end=st.floats(1e-3, 0.4),
    steps=st.integers(5, 200),
    noise=st.floats(0, 0.4),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_warning_of_a_noisy_loss_that_decreases(
    peers: int, start: float, end: float, steps: int, noise: float, seed: int
) -> None:
    random = np.random.default_rng(seed)

    def loss(t: int) -> float:
        return float((end + start * math.exp(-t / steps)) * math.exp(noise * random.standard_normal()))

    assert not watched(together(*(curve(loss, lambda t: 0.05 * loss(t)) for _ in range(peers))))


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), peers=st.integers(2, 4))
def test_whatever_happens_each_warning_comes_once_and_in_any_order_of_students(
    data: st.DataObject, seed: int, peers: int
) -> None:
    random = np.random.default_rng(seed)
    levels = np.exp(random.uniform(-3, 3, (peers, 6))).repeat(STEPS // 6, axis=1)
    apart = 10.0 ** random.uniform(-6, 0, peers)
    steps = together(*(curve(lambda t, p=p: levels[p, t], lambda _, p=p: apart[p]) for p in range(peers)))  # type: ignore[misc]
    found = watched(steps)
    assert len({(own.kind, own.student) for own in found}) == len(found)
    order = data.draw(st.permutations(range(peers)))
    assert watched([{student: own[student] for student in order} for own in steps]) == found
