"""Stored replay: a reservoir of earlier examples that any stage can compute again, and the draws from it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.methods import get_method
from ray_l4.run.stored_replay import record_stored, reservoir, stored_replay
from ray_l4.setup.setup import Setup
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.replay import num_replayed_per_task
from ray_l4.text.tokens import TOKENS, tokens_table
from tests.learner import learner_fixtures as small

TASKS = ("a", "b", "c", "d")
TOKENIZER = small.tokenizer(TASKS)


def setup_of(sizes: list[int], seed: int = 0, method: str = "er", **replay: Any) -> Setup:
    """Return the set-up of a stream of tasks of these sizes; the ids of example i of task number t are i, ANS and t."""
    config = small.experiment(stream=list(TASKS[: len(sizes)]), seed=seed, replay=replay)
    tables = {
        task: tokens_table(
            ids=[[row, TOKENIZER.ans, number] for row in range(size)],
            prompt_lengths=[2] * size,
            gens=[TOKENIZER.gen[task]] * size,
            tasks=[task] * size,
            sample_ids=[f"{task}-{row}" for row in range(size)],
            origin="real",
        )
        for number, (task, size) in enumerate(zip(TASKS, sizes, strict=False))
    }
    row = get_method(method)
    return Setup(config, row, row.graph(1), TOKENIZER, 64, tables, {})


def kept(setup: Setup, stage: int) -> list[str]:
    """Return the names of the examples in a stage's reservoir."""
    return reservoir(setup, stage)["sample_id"].to_pylist()


sizes = st.lists(st.integers(1, 20), min_size=2, max_size=4)
capacities = st.integers(1, 60)


@given(sizes, st.none() | capacities, st.integers(0, 9))
def test_a_reservoir_is_full_or_holds_all(sizes: list[int], capacity: int | None, seed: int) -> None:
    setup = setup_of(sizes, seed, capacity=capacity)
    for stage in range(1, len(sizes)):
        seen = sum(sizes[:stage])
        names = kept(setup, stage)
        assert len(names) == len(set(names)) == min(seen, capacity or seen)
        assert {name.split("-")[0] for name in names} <= set(TASKS[:stage]), "only of earlier tasks"


@given(sizes, capacities, st.integers(0, 9))
def test_an_example_that_was_dropped_never_comes_back(sizes: list[int], capacity: int, seed: int) -> None:
    """So a later reservoir follows from an earlier one and the tasks between them."""
    setup = setup_of(sizes, seed, capacity=capacity)
    for stage in range(2, len(sizes)):
        earlier, later = set(kept(setup, stage - 1)), set(kept(setup, stage))
        new = {f"{TASKS[stage - 1]}-{row}" for row in range(sizes[stage - 1])}
        assert later - new <= earlier


@given(sizes, capacities)
def test_a_reservoir_can_be_computed_again(sizes: list[int], capacity: int) -> None:
    first, again = setup_of(sizes, 5, capacity=capacity), setup_of(sizes, 5, capacity=capacity)
    assert reservoir(first, len(sizes) - 1).equals(reservoir(again, len(sizes) - 1))


def test_a_smaller_reservoir_is_a_part_of_a_larger_one() -> None:
    small_one, large_one = (set(kept(setup_of([30, 30, 1], capacity=capacity), 2)) for capacity in (10, 25))
    assert small_one < large_one


def test_another_seed_keeps_others() -> None:
    assert set(kept(setup_of([40, 1], 1, capacity=10), 1)) != set(kept(setup_of([40, 1], 2, capacity=10), 1))


def test_every_example_is_equally_likely_to_be_kept() -> None:
    """Whatever its task and row: each of 20 is kept with probability 1/4, so 1600 draws give 400 +- 5 sigma."""
    draws, capacity, total = 1600, 5, 20
    counts: Counter[str] = Counter()
    for seed in range(draws):
        counts.update(kept(setup_of([4, 16, 1], seed, capacity=capacity), 2))
    chance = capacity / total
    allowed = 5 * math.sqrt(draws * chance * (1 - chance))
    assert len(counts) == total
    assert all(abs(count - draws * chance) < allowed for count in counts.values()), counts


# --- draws from the reservoir


@given(sizes, st.none() | capacities, st.sampled_from([0.2, 0.5, 1.0, 2.0]))
@settings(max_examples=50)
def test_as_much_is_replayed_as_would_be_generated(sizes: list[int], capacity: int | None, ratio: float) -> None:
    """REFERENCE.md#replay, for every earlier task of which the reservoir holds anything."""
    setup = setup_of(sizes, capacity=capacity, ratio=ratio)
    for stage in range(1, len(sizes)):
        per_task = num_replayed_per_task(ratio, sizes[stage], stage)
        held = {name.split("-")[0] for name in kept(setup, stage)}
        table = stored_replay(setup, stage)
        if not per_task:
            assert table is None
            continue
        assert table is not None
        assert table["task"].to_pylist() == [task for task in TASKS[:stage] if task in held for _ in range(per_task)]


def test_replayed_examples_come_from_the_reservoir_and_are_marked() -> None:
    setup = setup_of([20, 20, 50], capacity=6, ratio=0.4)
    table = stored_replay(setup, 2)
    assert table is not None
    assert table.schema == TOKENS
    assert table.num_rows == 20, "more than the six that are kept: they are drawn with replacement"
    originals = {tuple(row["ids"]) for row in reservoir(setup, 2).to_pylist()}
    assert {tuple(row["ids"]) for row in table.to_pylist()} <= originals
    assert set(table["origin"].to_pylist()) == {"stored"}
    assert table["sample_id"].to_pylist() == [f"replay-2-{i}" for i in range(20)]


def test_every_stage_has_its_own_draw_and_can_repeat_it() -> None:
    setup = setup_of([20, 20, 20], ratio=1.0)
    draws = {stage: stored_replay(setup, stage) for stage in (1, 2)}
    assert draws[1] is not None and draws[2] is not None
    assert draws[1]["ids"].to_pylist()[:10] != draws[2]["ids"].to_pylist()[:10]
    assert draws[2].equals(stored_replay(setup_of([20, 20, 20], ratio=1.0), 2))


@pytest.mark.parametrize(("stage", "ratio"), [(0, 0.5), (1, 0.0)])
def test_without_earlier_tasks_or_a_share_nothing_is_replayed(stage: int, ratio: float) -> None:
    assert stored_replay(setup_of([10, 10], ratio=ratio), stage) is None


def test_replayed_examples_are_recorded(tmp_path: Path) -> None:
    setup = setup_of([10, 10], ratio=0.3)
    table = stored_replay(setup, 1)
    assert table is not None
    record_stored(RunDirectory(tmp_path), setup, 1, table)
    record = pq.read_table(tmp_path / "replay" / "stage-1.parquet").to_pylist()
    assert [row["index"] for row in record] == [0, 1, 2]
    for row, ids in zip(record, table["ids"].to_pylist(), strict=True):
        assert row["ids"] == [TOKENIZER.gen["a"], *ids]
        assert row["text"] == TOKENIZER.decode(row["ids"])
        assert (row["task"], row["valid"], row["reason"], row["student"]) == ("a", True, "", None)
