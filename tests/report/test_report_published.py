"""The papers' tables as typed: each average is that of its row, and tables that repeat each other agree."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, stdev

import pytest
from pydantic import ValidationError

from ray_l4.errors import ConfigError
from ray_l4.methods import METHODS
from ray_l4.report.aggregate import AVERAGE
from ray_l4.report.measures import ALL_RUNS, MEASURES, OVER_ORDERS
from ray_l4.report.run_result import NO_ORDER
from ray_l4.report.tables.published_tables import PublishedRow, PublishedTable, keys, published_table
from ray_l4.tasks.registry import TASKS

ROUNDING = 0.1 + 1e-9
"""Cells and average are both rounded to 0.1: together they may be off by twice half of that."""
POOLED = {"agreement", "agreement_by_task", "cost"}
LONGER = {"multi-qa-long", "multi-qa-lm-long", "multi-seq-kd-long", "lamol-medium", "teacher"}
"""Rows of a method with other settings, or of no method."""


def rows() -> Iterator[tuple[str, PublishedRow]]:
    for key in keys():
        table = published_table(key)
        if table.measure not in POOLED:
            yield from ((key, row) for block in table.blocks for row in block.rows)


def cells(key: str) -> dict[str, dict[str, dict[str, float]]]:
    return {
        title: {label: {name: cell.mean for name, cell in row.items()} for label, row in block.items()}
        for title, block in published_table(key).cells().items()
    }


@pytest.mark.parametrize(("key", "row"), rows())
def test_the_printed_average_is_that_of_its_row(key: str, row: PublishedRow) -> None:
    *values, average = row.values
    assert average == pytest.approx(fmean(values), abs=ROUNDING), key
    if row.sd:  # L2KD's Table 3: the mean of the three deviations, not the deviation of the averages
        *deviations, printed = row.sd
        assert printed == pytest.approx(fmean(deviations), abs=ROUNDING)


def test_every_file_is_complete_and_names_what_exists() -> None:
    for key in keys():
        table = published_table(key)
        assert table.measure in MEASURES
        assert all(note.strip() for note in table.notes) and table.notes
        for block in table.blocks:
            assert block.title in (None, ALL_RUNS, OVER_ORDERS)
            assert set(block.order or []) <= set(TASKS)
            for row in block.rows:
                assert row.variant in METHODS or row.variant in LONGER, (key, row.variant)
                if row.belongs_to:
                    assert sorted(row.belongs_to) == sorted(block.order or [])
                if table.measure in ("scores", "forgetting"):
                    assert set(table.columns_of(block)) <= {*TASKS, AVERAGE}


def test_the_tables_and_figures_that_have_a_protocol_are_there() -> None:
    wanted = {f"l4-table{number}" for number in (1, 2, 3, 5, 6, 8)} | {f"l4-figure{number}" for number in (4, 5, 6)}
    wanted |= {f"l2kd-table{number}" for number in (2, 3, 4, 5, 6, 8)} | {f"l2kd-figure{n}" for n in (3, 4, 5)}
    assert set(keys()) == wanted


def test_means_and_deviations_over_orders_follow_from_the_six_orders() -> None:
    orders = cells("l2kd-table2")
    assert len(orders) == 6
    published = published_table("l2kd-table3").cells()[OVER_ORDERS]
    for variant, row in published.items():
        for column, cell in row.items():
            values = [block[variant][column] for block in orders.values()]
            assert cell.mean == pytest.approx(fmean(values), abs=ROUNDING)
            if column != AVERAGE:
                assert cell.sd == pytest.approx(stdev(values), abs=0.06)


def test_inconsistent_deviation_of_the_average_is_noted_with_what_it_should_be() -> None:
    orders = cells("l2kd-table2")
    published = published_table("l2kd-table3").cells()[OVER_ORDERS]
    real = [stdev(block[variant][AVERAGE] for block in orders.values()) for variant in published]
    printed = [row[AVERAGE].sd for row in published.values()]
    assert any(abs(a - (b or 0)) > 0.5 for a, b in zip(real, printed, strict=True))
    text = "{:.1f}, {:.1f}, {:.1f}, {:.1f} and {:.1f}".format(*real)
    assert any(text in note for note in published_table("l2kd-table3").notes)


def test_l4_table_1_mixes_two_methods_of_l2kd_as_item_17_says() -> None:
    l4, l2kd = cells("l4-table1"), cells("l2kd-table2")
    assert l4.keys() == l2kd.keys()
    soft = [title for title, block in l4.items() if "l2kd-seq-soft" in block]
    assert soft == ["cnn_dailymail -> woz.en -> wikisql", "wikisql -> cnn_dailymail -> woz.en"]
    for title, block in l4.items():
        for variant in block.keys() - {"l4"}:
            assert block[variant] == l2kd[title][variant], (title, variant)
        assert len(block) == 4
    assert any("mixes two methods" in note for note in published_table("l4-table1").notes)


def test_l4_table_2_prints_the_baselines_under_the_wrong_order_as_item_18_says() -> None:
    moved, l2kd = cells("l4-table2"), cells("l2kd-table4")
    for title, block in moved.items():
        for variant in block.keys() - {"l4"}:
            assert block[variant] == l2kd[title][variant]
    printed = published_table("l4-table2").blocks[1]
    assert (printed.order or [])[0] == "rnnlg.laptop" and printed.rows[0].values[-1] == 63.2  # as in the paper
    assert moved["e2enlg -> rnnlg.rest -> rnnlg.hotel -> rnnlg.tv -> rnnlg.laptop"]["lamol"][AVERAGE] == 63.2
    notes = " ".join(published_table("l4-table2").notes)
    assert "under the wrong order" in notes and "says the opposite" in notes


def test_rows_keep_the_printed_order_also_where_they_were_moved() -> None:
    for title, block in cells("l4-table2").items():
        assert title == NO_ORDER or list(block) == ["lamol", "l2kd-word", "l4"]


def test_student_0_of_tables_5_and_6_is_the_l4_of_table_1() -> None:
    table1, table6 = cells("l4-table1"), cells("l4-table6")
    for title, block in table6.items():
        assert list(block) == ["l4", "l4, student 1"]
        assert block["l4"] == table1[title]["l4"]
    first = cells("l4-table5")["woz.en -> cnn_dailymail -> wikisql"]
    both = table6["woz.en -> cnn_dailymail -> wikisql"]
    assert {label: first[label] for label in both} == both
    assert published_table("l4-table6").students() == (0, 1)


def test_l2kd_table_6_pools_the_examples_of_table_8() -> None:
    """The tasks have test sets of one size, so pooled shares follow from the teachers' accuracies."""
    order = "amazon -> yelp -> yahoo -> ag -> dbpedia"
    by_task = [block for title, block in cells("l2kd-table8").items() if title.startswith(order)]
    assert len(by_task) == 5
    share = [block["teacher"]["accuracy"] / 100 for block in by_task]
    for variant, row in cells("l2kd-table6")[order].items():
        values = [block[variant] for block in by_task]
        right = sum(a * value["A"] for a, value in zip(share, values, strict=True)) / sum(share)
        wrong = sum((1 - a) * value["B"] for a, value in zip(share, values, strict=True)) / sum(1 - a for a in share)
        assert row["A"] == pytest.approx(right, abs=0.02)
        assert row["B"] == pytest.approx(wrong, abs=0.02)
        assert row["accuracy"] == pytest.approx(fmean(value["accuracy"] for value in values), abs=0.01)
        for a, value in zip(share, values, strict=True):
            assert value["accuracy"] == pytest.approx(a * value["A"] + (1 - a) * value["B"], abs=0.02)


def test_values_without_a_column_are_refused() -> None:
    row = {"variant": "l4", "values": [1.0]}
    with pytest.raises(ValidationError, match="not one for each"):
        PublishedTable.model_validate(
            {"title": "t", "source": "s", "columns": ["a", "b"], "blocks": [{"rows": [row]}], "notes": []}
        )


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no such published table. Did you mean 'l4-table2'\?"):
        published_table("l4-tabel2")
