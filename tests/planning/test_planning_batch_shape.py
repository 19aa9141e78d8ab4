"""The shape of a batch before there is data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import ConfigError
from ray_l4.planning.batch_shape import batch_shape
from ray_l4.planning.meta_models import vocabulary_of
from ray_l4.text.batches import build_batch
from ray_l4.text.sampler import Sampler
from tests.planning.planning_fixtures import experiment, profile


def test_the_worst_case_is_the_largest_batch_that_model_and_experiment_allow() -> None:
    batch = batch_shape(experiment(), profile())
    assert (batch.examples, batch.at_once, batch.length, batch.worst_case) == (4, 4, 48, True)
    assert batch.answer == 23, "evaluation.reserve is more than half of such a short example"
    assert batch_shape(experiment(evaluation={"reserve": 7}), profile()).answer == 7


def test_ranks_and_micro_batches_share_the_examples() -> None:
    config = experiment(training={"batch_size": 9})
    assert batch_shape(config, profile(students={"shards_per_student": 4})).at_once == 3
    assert batch_shape(config, profile(students={"shards_per_student": 2, "micro_batch": 2})).at_once == 2
    assert batch_shape(config, profile(students={"micro_batch": 50})).at_once == 9


def test_a_length_can_be_given() -> None:
    batch = batch_shape(experiment(), profile(), tokens=20, answer=5)
    assert (batch.length, batch.answer, batch.worst_case) == (20, 5, False)


@pytest.mark.parametrize(("tokens", "answer"), [(49, None), (3, None), (20, 19), (20, 0)])
def test_impossible_lengths_are_refused(tokens: int, answer: int | None) -> None:
    with pytest.raises(ConfigError, match="expected"):
        batch_shape(experiment(), profile(), tokens, answer)


@pytest.mark.parametrize(
    ("method", "stream", "ratio", "expected"),
    [
        ("finetune", ["ag", "woz.en"], 0.2, 115_000 // 1500),
        ("l4", ["ag", "woz.en"], 0.2, 138_000 // 1500),
        ("l4", ["ag"], 0.2, 115_000 // 1500),
        ("multi-qa", ["ag", "yelp"], 0.2, 230_000 // 1500),
        ("finetune", [{"name": "ag", "train": 30_000}], 0.2, 20),
        ("finetune", ["woz.en"], 0.2, 4),
    ],
)
def test_the_automatic_batch_size(method: str, stream: list[object], ratio: float, expected: int) -> None:
    config = experiment(method, stream=stream, training={"batch_size": "auto"}, replay={"ratio": ratio})
    assert batch_shape(config, profile()).examples == expected


def test_a_batch_size_that_depends_on_data_is_refused() -> None:
    config = experiment(stream=[{"name": "ag", "train": "all"}], training={"batch_size": "auto"})
    with pytest.raises(ConfigError, match=r"'ag' has.*--set training.batch_size"):
        batch_shape(config, profile())


@given(st.integers(1, 40), st.floats(30, 20_000), st.lists(st.integers(4, 48), min_size=1, max_size=60))
def test_the_sampler_makes_no_larger_batch(cap: int, budget: float, lengths: list[int]) -> None:
    """For any examples, the padded tokens of a batch, task tokens included, are at most those of its shape."""
    config = experiment(training={"batch_size": cap, "batch_budget": budget})
    shape = batch_shape(config, profile())
    sampler = Sampler(np.asarray(lengths) - 1, 0, 0, 1, cap, budget)
    for step in range(sampler.num_steps):
        rows = sampler.indices(step)
        width = max(lengths[row] for row in rows)
        assert len(rows) <= cap
        # The budget bounds length ** 1.163; rounding it to whole examples and tokens costs at most one of each.
        assert len(rows) * width <= (shape.examples + 1) * (shape.length + 1)


def test_the_table_yields_batches_of_that_shape() -> None:
    config = experiment()
    shape, vocabulary = batch_shape(config, profile(), tokens=20, answer=5), vocabulary_of(config)
    table = shape.table(vocabulary, 2)
    assert table.num_rows == 8
    batch = build_batch(table, np.arange(4), ("qa", "lm"), vocabulary, 5.0)
    assert batch.input_ids_RT.shape == (8, 20)
    assert len(batch.heads["qa"].targets_N) == 4 * 6, "the answer and EOS"
    assert len(batch.heads["lm"].targets_N) == 4 * 20
    assert batch.num_current_examples == 4
