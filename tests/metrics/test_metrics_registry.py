"""The table of metrics, and the errors of ``score``."""

from __future__ import annotations

import json

import pytest

from ray_l4.errors import ConfigError, DataError
from ray_l4.metrics.registry import METRICS, Item, score

META = json.dumps({"sql": {"sel": 0, "agg": 1, "conds": []}, "header": ["year"]})
ANSWERS = {"joint_goal_em": "food: thai; phone", "lfem": "select max year from table"}


def test_the_metric_names_of_configurations() -> None:
    assert list(METRICS) == ["joint_goal_em", "lfem", "avg_rouge", "em", "nf1", "nem"]
    assert all(name == metric.name and metric.description for name, metric in METRICS.items())


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_answer_scores_100_regardless_of_surrounding_blanks(name: str) -> None:
    answer = ANSWERS.get(name, "a red car.")
    for prediction, reference in ((answer, answer), (f" {answer}", answer), (answer, f"\n{answer} ")):
        values = score(name, [Item(prediction, (reference,), "en_0_0", META)])
        assert values[METRICS[name].headline] == pytest.approx(100)
    assert score(name, [Item("wrong", (answer,), "en_0_0", META)])[METRICS[name].headline] == 0


def test_the_error_for_an_unknown_metric_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"'avg_rogue'.*Did you mean 'avg_rouge'\?"):
        score("avg_rogue", [Item("a", ("a",), "0")])


@pytest.mark.parametrize("name", METRICS)
def test_no_items_and_no_references_are_data_errors(name: str) -> None:
    with pytest.raises(DataError, match="no items"):
        score(name, [])
    with pytest.raises(DataError, match="'s3' has no reference"):
        score(name, [Item("a", ("a",), "s2", META), Item("a", (), "s3", META)])


@pytest.mark.parametrize("name", METRICS)
def test_only_metrics_that_say_so_need_meta(name: str) -> None:
    answer = ANSWERS.get(name, "a red car.")
    without = Item(answer, (answer,), "en_0_0")
    if METRICS[name].needs_meta:
        with pytest.raises(DataError, match="needs meta"):
            score(name, [without])
    else:
        assert score(name, [without]) == score(name, [Item(answer, (answer,), "en_0_0", META)])
