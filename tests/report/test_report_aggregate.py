"""Runs as one table: grouping, averages, the best of a column, and runs that cannot share a table."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import (
    Measurement,
    Statistic,
    aggregate,
    comparable_tasks,
    group,
    statistic,
    to_markdown,
)
from ray_l4.report.run_result import NO_ORDER, RunResult
from ray_l4.store.run_directory import TOGETHER

values = st.floats(-1e3, 1e3)


def result(
    method: str = "l4", seed: int = 0, scores: tuple[float | None, float | None] = (60.0, 70.0), **changes: Any
) -> RunResult:
    """Return a result with all that a table reads; student 1 is 10 points better than student 0."""
    stream = changes.get("stream", ["woz.en", "wikisql"])
    better = [None if score is None else score + 10 for score in scores]
    known = [score for score in scores if score is not None]
    average = sum(known) / 2 if len(known) == 2 else None
    summary = {
        "method": method,
        "stream": stream,
        "peers": 2,
        "seed": seed,
        "final": {"0": dict(zip(stream, scores, strict=True)), "1": dict(zip(stream, better, strict=True))},
        "average_accuracy": {"0": average, "1": None if average is None else average + 10},
        "forgetting": {"0": 20.0, "1": 10.0},
    }
    return RunResult(summary | changes)


@given(st.lists(values, min_size=2, max_size=6))
def test_a_statistic_is_mean_and_sample_deviation(numbers: list[float]) -> None:
    found = statistic(numbers)
    assert found is not None and found.sd is not None
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.sd == pytest.approx(variance**0.5, abs=1e-6)
    assert found.count == len(numbers)


def test_a_statistic_of_one_and_of_none() -> None:
    assert statistic([3.0, None]) == Statistic(3.0, None, 1)
    assert statistic([None]) is None
    assert (Statistic(3.04).text(), Statistic(3.04, 0.25, 2).text(2)) == ("3.0", "3.04 ± 0.25")


def test_seeds_of_a_variant_become_one_row_and_orders_blocks() -> None:
    turned = result("l4", 0, (10.0, 90.0), stream=["wikisql", "woz.en"])
    runs = [result("l4", 0), turned, result("lamol", 0, (1.0, 2.0)), result("l4", 1, (62.0, 71.0))]
    found = aggregate(runs)
    assert found.columns == ("woz.en", "wikisql", "average", "forgetting")
    assert [block.title for block in found.blocks] == ["woz.en -> wikisql", "wikisql -> woz.en"]
    first, second = found.blocks
    assert [(row.label, row.runs) for row in first.rows] == [("l4", 2), ("lamol", 1)]
    assert first.rows[0].cells["woz.en"] == Statistic(61.0, statistics.stdev([60.0, 62.0]), 2)
    assert first.rows[0].cells["forgetting"] == Statistic(20.0, 0.0, 2)
    assert second.rows[0].cells == {
        "woz.en": Statistic(90.0),
        "wikisql": Statistic(10.0),
        "average": Statistic(50.0),
        "forgetting": Statistic(20.0),
    }


def test_a_variant_s_name_counts_and_without_one_the_method_s() -> None:
    runs = [result(variant="lambda 0"), result(variant="lambda 1"), result(variant=None)]
    assert [row.label for row in aggregate(runs).blocks[0].rows] == ["lambda 0", "lambda 1", "l4"]


def test_methods_without_an_order_share_one_block() -> None:
    turned = result("multi-qa", stream=["wikisql", "woz.en"])
    found = aggregate([result("multi-qa"), turned, result("single-qa"), result("l4")])
    assert [block.title for block in found.blocks] == [NO_ORDER, "woz.en -> wikisql"]
    assert [(row.label, row.runs) for row in found.blocks[0].rows] == [("multi-qa", 2), ("single-qa", 1)]


def test_other_students_have_rows_of_their_own_where_they_exist() -> None:
    runs = [result(), result("lamol", peers=1)]
    rows = aggregate(runs, students=(0, 1)).blocks[0].rows
    assert [(row.label, row.cells["woz.en"]) for row in rows] == [
        ("l4", Statistic(60.0)),
        ("l4, student 1", Statistic(70.0)),
        ("lamol", Statistic(60.0)),
    ]
    with pytest.raises(ConfigError, match="no run has a student 2"):
        aggregate(runs, students=(2,))


def test_best_is_decided_by_the_printed_mean_and_lower_forgetting_wins() -> None:
    runs = [
        result("l4", scores=(60.0, 70.04)),
        result("lamol", scores=(59.0, 69.96), forgetting={"0": 5.0, "1": 5.0}),
        result("finetune", scores=(None, 1.0)),
    ]
    found = aggregate(runs)
    (block,) = found.blocks
    assert found.best(block, "woz.en") == {"l4"}
    assert found.best(block, "wikisql") == {"l4", "lamol"}  # both are printed as 70.0
    assert found.best(block, "forgetting") == {"lamol"}


def test_there_is_no_best_of_one_or_of_equals() -> None:
    found = aggregate([result(), result("lamol", scores=(None, None))])
    assert found.best(found.blocks[0], "woz.en") == frozenset()
    assert found.best(found.blocks[0], "forgetting") == frozenset()  # 20.0 both


def test_markdown_as_a_person_sees_it() -> None:
    worse = {"0": 25.0, "1": 25.0}
    runs = [result("l4"), result("l4", 1, (62.0, 71.0)), result("lamol", scores=(None, 80.0), forgetting=worse)]
    assert to_markdown(aggregate(runs)).split("\n") == [
        "woz.en -> wikisql:",
        "",
        "| variant | runs |     woz.en |    wikisql |    average |     forgetting |",
        "| ------- | ---: | ---------: | ---------: | ---------: | -------------: |",
        "| l4      |    2 | 61.0 ± 1.4 | 70.5 ± 0.7 | 65.8 ± 1.1 | **20.0 ± 0.0** |",
        "| lamol   |    1 |          – |   **80.0** |          – |           25.0 |",
    ]


def test_a_column_without_any_value_is_left_out() -> None:
    text = to_markdown(aggregate([result("multi-qa", forgetting={"0": None, "1": None})]))
    assert "forgetting" not in text and "average" in text


def test_runs_of_other_tasks_cannot_stand_in_one_table() -> None:
    other = result("lamol", stream=["woz.en", "ag"])
    with pytest.raises(ConfigError, match=r"different tasks.*ag, woz\.en \(such as lamol, seed 0\); wikisql, woz\.en"):
        aggregate([result(), other])
    with pytest.raises(ConfigError, match="such as runs/b"):
        comparable_tasks([result(), other], ["runs/a", "runs/b"])


def test_one_seed_cannot_stand_twice() -> None:
    with pytest.raises(
        ConfigError, match=r"two runs of l4 on woz\.en -> wikisql have seed 3: runs/a; runs/b\. .*variant"
    ):
        comparable_tasks([result(seed=3), result(seed=3)], ["runs/a", "runs/b"])
    assert comparable_tasks([result(seed=3), result(seed=3, variant="lambda 1")]) == ("woz.en", "wikisql")


def test_no_run_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no finished run"):
        aggregate([])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), values), min_size=1, max_size=20))
def test_grouping_loses_nothing(told: list[tuple[str, str, float]]) -> None:
    found = group([Measurement(block, row, {"c": value}) for block, row, value in told], ["c"])
    cells = {(block.title, row.label): row.cells["c"] for block in found.blocks for row in block.rows}
    for key in {(block, row) for block, row, _ in told}:
        mine = [value for block, row, value in told if (block, row) == key]
        assert cells[key] == statistic(mine)
    assert sum(row.runs for block in found.blocks for row in block.rows) == len(told)


def test_all_students_together_are_a_row_below_their_variant() -> None:
    together = {"final": {"woz.en": 90.0, "wikisql": 80.0}, "average_accuracy": 85.0, "forgetting": 1.0}
    runs = [result(seed=seed, together=together) for seed in range(2)]
    table = aggregate([*runs, result(method="lamol", together=None)])
    (block,) = table.blocks
    assert [(row.label, row.runs) for row in block.rows] == [("l4", 2), ("l4, together", 2), ("lamol", 1)]
    assert {name: cell.mean for name, cell in block.rows[1].cells.items() if cell} == {
        "woz.en": 90.0,
        "wikisql": 80.0,
        "average": 85.0,
        "forgetting": 1.0,
    }
    assert [row.label for row in aggregate(runs, students=(1,)).blocks[0].rows] == ["l4, student 1", "l4, together"]
    assert runs[0].figure("backward_transfer", TOGETHER) is None, "the run does not have it"
    assert result().figure("forgetting", TOGETHER) is None and TOGETHER not in result().rows
    assert list(runs[0].students) == [0, 1], "it is no student"
