"""Scores of single items, compared with those of all items together."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import ConfigError, DataError
from ray_l4.metrics.registry import METRICS, Item, item_scores, score

META = json.dumps({"sql": {"sel": 0, "agg": 1, "conds": [[1, 0, "x"]]}, "header": ["year", "name"]})
TEXTS = (
    *("select max year from table where name = x", "select year from table", "food: thai;", "none", ""),
    *("A red car. It is fast.", "a red car", "the red, red car"),
)
texts = st.sampled_from(TEXTS)
items = st.builds(
    Item,
    prediction=texts,
    references=st.lists(texts, min_size=1, max_size=3).map(tuple),
    sample_id=st.integers(0, 9).map("en_1_{}".format),
    meta=st.just(META),
)
INDEPENDENT_OF_ORDER = sorted(name for name, metric in METRICS.items() if metric.item_value is None)


@pytest.mark.parametrize("metric", INDEPENDENT_OF_ORDER)
@given(given_items=st.lists(items, min_size=1, max_size=6))
def test_the_mean_of_item_scores_is_the_headline(metric: str, given_items: list[Item]) -> None:
    found = item_scores(metric, given_items)
    assert len(found) == len(given_items)
    assert all(0 <= value <= 100 for value in found)
    headline = score(metric, given_items)[METRICS[metric].headline]
    assert sum(found) / len(found) == pytest.approx(headline, abs=1e-9)


@given(given_items=st.lists(items, min_size=2, max_size=6))
def test_the_score_of_an_item_does_not_depend_on_other_items(given_items: list[Item]) -> None:
    for metric in METRICS:
        assert item_scores(metric, given_items[::-1]) == item_scores(metric, given_items)[::-1]
        assert item_scores(metric, given_items[:1]) == item_scores(metric, given_items)[:1]


def test_a_turn_is_scored_by_its_own_goal_and_not_by_the_joint_goal() -> None:
    turns = [
        Item("food: thai;", ("food: greek;",), "en_0_0"),
        Item(" area: north;", ("area: north;",), "en_0_1"),  # correct, but the accumulated state is still wrong
    ]
    assert score("joint_goal_em", turns)["joint_goal_em"] == 0
    assert item_scores("joint_goal_em", turns) == [0, 100]


def test_hand_computed_values() -> None:
    pair = [Item("a red car", ("red cars", "a red bus"), "0"), Item(" yes\n", ("yes",), "1")]
    assert item_scores("nf1", pair) == [pytest.approx(50), 100]
    assert item_scores("em", pair) == [0, 100]


def test_the_same_errors_as_score() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'em'"):
        item_scores("emm", [Item("a", ("a",), "0")])
    with pytest.raises(DataError, match="no items"):
        item_scores("em", [])
    with pytest.raises(DataError, match="'s1' has no reference"):
        item_scores("em", [Item("a", (), "s1")])
