"""The sampler: every example once per epoch, the same batches after a restart, and the limits on batches.

REFERENCE.md#batching.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import DataError
from ray_l4.seeds import derive
from ray_l4.text.sampler import Sampler, auto_batch_size


@pytest.mark.parametrize(
    ("num_examples", "cap"), [(2536, 4), (7925, 5), (7830, 5), (9533, 6), (115_000, 76), (138_000, 92), (1, 4)]
)
def test_worked_batch_caps(num_examples: int, cap: int) -> None:
    assert auto_batch_size(num_examples) == cap


def test_auto_uses_the_cap() -> None:
    # REFERENCE.md#batching: WOZ has 634 steps per epoch.
    assert Sampler([10] * 2536, 0, 0, 2, "auto").num_steps == 2 * 634
    assert len(Sampler([10] * 7925, 0, 0, 1, "auto").indices(0)) == 5


def test_order_is_the_permutation_of_seed_stage_and_epoch() -> None:
    sampler = Sampler([5] * 10, seed=3, stage=1, epochs=2, batch_size=4)
    for epoch in (0, 1):
        order = np.random.default_rng(derive(3, "order", 1, epoch)).permutation(10)
        batches = [sampler.indices(3 * epoch + k).tolist() for k in range(3)]
        assert batches == [order[:4].tolist(), order[4:8].tolist(), order[8:].tolist()]
    same = Sampler([5] * 10, 3, 1, 2, 4)
    others = [Sampler([5] * 10, 4, 1, 2, 4), Sampler([5] * 10, 3, 2, 2, 4)]
    visited = [np.concatenate([s.indices(k) for k in range(6)]).tolist() for s in (sampler, same, *others)]
    assert visited[0] == visited[1]
    assert visited[0] not in visited[2:]
    assert visited[0][:10] != visited[0][10:]


def visited(order: tuple[int, ...], num_examples: int = 12, seed: int = 3) -> list[int]:
    """Return the rows of two epochs in the order of a sampler with these further names in its seed."""
    sampler = Sampler([5] * num_examples, seed, stage=1, epochs=2, batch_size=5, order=order)
    return np.concatenate([sampler.indices(step) for step in range(sampler.num_steps)]).tolist()


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**40))
def test_students_with_orders_of_their_own_visit_the_same_examples(one: int, other: int, seed: int) -> None:
    first, second = visited((one,), 40, seed), visited((other,), 40, seed)
    assert (first == second) == (one == other)
    assert first != visited((), 40, seed)
    assert sorted(first) == sorted(second) == sorted([*range(40), *range(40)])


def test_the_names_of_an_order_are_pinned() -> None:
    """The names in the seed must never change: a resumed run has to see the same batches as without interruption."""
    for order in ((), (2,)):
        epochs = [np.random.default_rng(derive(3, "order", 1, epoch, *order)).permutation(12) for epoch in (0, 1)]
        assert visited(order) == np.concatenate(epochs).tolist()
    assert visited(())[:12] == [4, 10, 1, 9, 7, 2, 6, 0, 3, 8, 11, 5]


lengths_lists = st.lists(st.integers(1, 60), min_size=1, max_size=40)
budgets = st.none() | st.floats(1, 2000)
sizes = st.integers(1, 9) | st.just("auto")


@given(lengths_lists, st.integers(1, 4), sizes, budgets, st.integers(0, 9))
def test_every_epoch_visits_every_example_once(
    lengths: list[int], epochs: int, size: int | Literal["auto"], budget: float | None, seed: int
) -> None:
    sampler = Sampler(lengths, seed, 2, epochs, size, budget)
    visited: list[list[int]] = [[] for _ in range(epochs)]
    seen = 0
    for step in range(sampler.num_steps):
        assert sampler.examples_before(step) == seen
        batch = sampler.indices(step)
        assert len(batch) > 0
        visited[seen // len(lengths)].extend(batch.tolist())
        seen += len(batch)
    assert [sorted(epoch) for epoch in visited] == [list(range(len(lengths)))] * epochs
    assert sampler.examples_before(sampler.num_steps) == seen == epochs * len(lengths)
    lasts = [sampler.last_step_of(epoch) for epoch in range(epochs)]
    assert lasts[-1] == sampler.num_steps - 1
    assert [sampler.examples_before(last + 1) for last in lasts] == [len(lengths) * (e + 1) for e in range(epochs)]
    # A peer restored at any step continues with the same batch as without interruption.
    step = seed % sampler.num_steps
    assert Sampler(lengths, seed, 2, epochs, size, budget).indices(step).tolist() == sampler.indices(step).tolist()


@given(lengths_lists, st.integers(1, 6), st.floats(1, 2000))
def test_a_batch_is_full_by_size_or_by_budget(lengths: list[int], cap: int, budget: float) -> None:
    sampler = Sampler(lengths, 0, 0, 1, cap, budget)
    batches = [[lengths[i] for i in sampler.indices(step)] for step in range(sampler.num_steps)]
    for k, batch in enumerate(batches):
        assert len(batch) <= cap
        assert len(batch) == 1 or max(batch) ** 1.163 * len(batch) <= budget
        if k + 1 < len(batches):
            grown = [*batch, batches[k + 1][0]]
            assert len(grown) > cap or max(grown) ** 1.163 * len(grown) > budget


def test_the_budget_is_counted_from_one_after_a_full_batch() -> None:
    # Two examples fit by size and by budget. The reference implementation would count one too many after a full batch
    # and end the second one after one example (REFERENCE.md#batching).
    budget = 2 * 10**1.163
    sampler = Sampler([10] * 6, 0, 0, 1, 2, budget)
    assert [len(sampler.indices(step)) for step in range(sampler.num_steps)] == [2, 2, 2]


def test_a_long_example_is_a_batch_of_one() -> None:
    sampler = Sampler([100, 1, 1, 1], 0, 0, 1, 8, 50.0)
    batches = [sampler.indices(step).tolist() for step in range(sampler.num_steps)]
    assert [0] in batches
    assert sum(map(len, batches)) == 4


def test_the_last_partial_batch_is_kept() -> None:
    sampler = Sampler([1] * 10, 0, 0, 3, 4)
    assert sampler.num_steps == 3 * math.ceil(10 / 4)
    assert [len(sampler.indices(step)) for step in range(6)] == [4, 4, 2] * 2
    assert [sampler.last_step_of(epoch) for epoch in range(3)] == [2, 5, 8]


def test_steps_and_epochs_outside_the_stage_are_errors() -> None:
    sampler = Sampler([1] * 4, 0, 0, 1, 2)
    for call in (sampler.indices, sampler.last_step_of):
        for outside in (-1, 2):
            with pytest.raises(IndexError, match=str(outside)):
                call(outside)
    with pytest.raises(IndexError):
        sampler.examples_before(3)


def test_a_stage_needs_examples() -> None:
    with pytest.raises(DataError, match="Stage 7"):
        Sampler([], 0, 7, 1, 4)
