"""lfEM: branches of both parsers, and gold queries of the real data scored against themselves."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.loading import data_config
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.metrics.registry import Item, score
from ray_l4.metrics.sql import Query, UnparsableSqlError, parse_exact, parse_fuzzy
from ray_l4.tasks.registry import load

HEADER = ("player", "school/club team", "year", "final score", "score")


def item(prediction: str, sql: dict[str, Any], header: tuple[str, ...] = HEADER, name: str = "q0") -> Item:
    return Item(prediction, ("unused",), name, json.dumps({"sql": sql, "header": header}))


def both(text: str, header: tuple[str, ...] = HEADER) -> tuple[Query, Query]:
    return parse_fuzzy(text, header), parse_exact(text, header)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select player from table", Query(0, 0, ())),
        ("select count player from table", Query(0, 3, ())),
        ("select avg final score from table", Query(3, 5, ())),
        ("select min year from table where score > 7", Query(2, 1 + 1, ((4, 1, "7"),))),
        ("select max year from table where player = ann and score < 7", Query(2, 1, ((0, 0, "ann"), (4, 2, "7")))),
        ("select sum score from table where final score = 3", Query(4, 4, ((3, 0, "3"),))),
        # A column name as a value becomes a marker and is turned back into text.
        ("select player from table where year = score", Query(0, 0, ((2, 0, "score"),))),
    ],
)
def test_both_parsers_read_well_formed_queries(text: str, expected: Query) -> None:
    assert both(text) == (expected, expected)


def test_only_the_fuzzy_parser_removes_spaces_from_values() -> None:
    fuzzy, exact = both("select year from table where player = ann  b. lee and year > 3")
    assert fuzzy.conds == ((0, 0, "annb.lee"), (2, 1, "3"))
    assert exact.conds == ((0, 0, "ann b. lee"), (2, 1, "3"))


def test_only_the_fuzzy_parser_repairs_column_names() -> None:
    text = "select count playr from table where scholl/club teem = ajax"
    assert parse_fuzzy(text, HEADER) == Query(0, 3, ((1, 0, "ajax"),))
    with pytest.raises(UnparsableSqlError):
        parse_exact(text, HEADER)
    # One wrong column in a condition makes the exact parser fail.
    with pytest.raises(UnparsableSqlError, match="do not start"):
        parse_exact("select player from table where yer = 5", HEADER)
    with pytest.raises(UnparsableSqlError, match="do not start"):
        parse_exact("select player from table where the year = 5", HEADER)


def test_a_full_column_name_has_priority_over_an_aggregate() -> None:
    assert both("select max speed from table", ("speed", "max speed")) == (Query(1, 0, ()), Query(1, 0, ()))
    assert both("select max speed from table", ("speed", "weight")) == (Query(0, 1, ()), Query(0, 1, ()))


def test_an_unknown_aggregate_cannot_be_parsed() -> None:
    for parse in (parse_fuzzy, parse_exact):
        with pytest.raises(UnparsableSqlError, match="no aggregate"):
            parse("select most year from table", HEADER)
    with pytest.raises(UnparsableSqlError, match="no column"):
        parse_exact("select max age from table", HEADER)
    with pytest.raises(UnparsableSqlError, match="no aggregate"):
        parse_exact("", HEADER)


def test_of_equally_similar_columns_the_longest_and_then_the_first_is_chosen() -> None:
    # An empty text is equally similar to every name (0); "yy" has no letter in common with any (-2 / 10^8 each).
    assert parse_fuzzy("", ("a", "bcd", "efg")) == Query(1, 0, ())
    assert parse_fuzzy("select max yy from table", ("bbd", "eef")) == Query(0, 1, ())
    assert both("select a from table", ("a", "a")) == (Query(0, 0, ()), Query(0, 0, ()))


def test_a_single_unknown_word_is_read_as_an_aggregate() -> None:
    # If no name has a letter in common, the empty text after the first word is the most similar (0 > -1 / 10^8).
    with pytest.raises(UnparsableSqlError, match="no aggregate"):
        parse_fuzzy("select yy from table", ("bb", "cc"))


def test_an_empty_column_name_cannot_be_compared_with_an_empty_text() -> None:
    with pytest.raises(UnparsableSqlError, match="empty column name"):
        parse_fuzzy("select from table", ("", "year"))
    assert parse_fuzzy("select max year from table where year = 3", ("", "year")).sel == 1


def test_quirk_text_is_split_at_where_even_inside_a_name() -> None:
    header = ("whereabouts", "year")
    text = "select whereabouts from table where year = 3"
    assert parse_fuzzy(text, header) != Query(0, 0, ((1, 0, "3"),))
    sql = {"sel": 0, "agg": 0, "conds": [[1, 0, 3]]}
    assert score("lfem", [item(text, sql, header)]) == {"lfem": 0.0, "lfem_exact": 0.0}


def test_quirk_and_inside_a_value_breaks_the_fuzzy_parser_except_in_the_last_condition() -> None:
    inner = "select year from table where player = sandy and score = 3"
    outer = "select year from table where score = 3 and player = sandy"
    gold = ((0, 0, "sandy"), (4, 0, "3"))
    assert parse_fuzzy(inner, HEADER).conds != gold  # "sandy" is cut in two, and the last piece is lost
    assert parse_exact(inner, HEADER).conds == gold
    assert parse_fuzzy(outer, HEADER).conds == gold[::-1]


def test_quirk_the_blank_before_a_column_is_compared_with_the_header() -> None:
    """`` top-5`` is as similar to ``top-25`` as to ``top-5``, and the longer name is the first candidate."""
    header = ("top-5", "top-25", "player")
    text = "select player from table where player = x and top-5 > 0"
    assert parse_fuzzy(text, header).conds == ((2, 0, "x"), (1, 1, "0"))
    assert parse_exact(text, header).conds == ((2, 0, "x"), (0, 1, "0"))
    assert score("lfem", [item(text, {"sel": 2, "agg": 0, "conds": [[2, 0, "x"], [0, 1, 0]]}, header)])["lfem"] == 0


def test_quirk_a_trailing_and_is_removed_from_every_value() -> None:
    fuzzy, exact = both("select year from table where player = you and")
    assert fuzzy.conds == exact.conds == ((0, 0, "you"),)


@pytest.mark.parametrize(
    "conditions",
    ["", "player ann", "player =", "player >= 3", "player = \ue0009 \ue0010 x"],
)
def test_malformed_conditions_score_0(conditions: str) -> None:
    text = f"select year from table where {conditions}"
    with pytest.raises(UnparsableSqlError):
        parse_fuzzy(text, HEADER)
    assert score("lfem", [item(text, {"sel": 2, "agg": 0, "conds": []})])["lfem"] == 0.0


@pytest.mark.parametrize("conditions", ["player = ann score = 3", "= 3 <", "player = ann < 3"])
def test_quirk_conditions_that_do_not_pair_up_are_misread(conditions: str) -> None:
    """The last piece is lost, so one condition remains, as in the references."""
    assert len(parse_fuzzy(f"select year from table where {conditions}", HEADER).conds) == 1


def test_only_the_exact_parser_accepts_an_operator_inside_a_value() -> None:
    text = "select year from table where player = a < b"
    assert parse_exact(text, HEADER).conds == ((0, 0, "a < b"),)
    assert parse_fuzzy(text, HEADER).conds != ((0, 0, "a<b"),)


def test_an_empty_value_before_another_condition_is_a_value() -> None:
    assert parse_fuzzy("select year from table where player = and score = 3", HEADER).conds == ((0, 0, ""), (4, 0, "3"))


def test_gold_values_are_lower_cased_and_the_order_of_conditions_counts() -> None:
    sql = {"sel": 2, "agg": 0, "conds": [[0, 0, "Ann Lee"], [4, 1, 7.5]]}
    right = "select year from table where player = ann lee and score > 7.5"
    swapped = "select year from table where score > 7.5 and player = ann lee"
    header = tuple(name.title() for name in HEADER)
    assert score("lfem", [item(right, sql, header)]) == {"lfem": 100.0, "lfem_exact": 100.0}
    assert score("lfem", [item(swapped, sql, header)]) == {"lfem": 0.0, "lfem_exact": 0.0}
    assert score("lfem", [item(right, sql), item(swapped, sql), item("", sql), item("nonsense", sql)])["lfem"] == 25.0


def test_spaces_of_gold_values_count_only_for_the_exact_parser() -> None:
    sql = {"sel": 2, "agg": 0, "conds": [[0, 0, "Ann  Lee"]]}
    text = " select year from table where player = ann lee"
    assert score("lfem", [item(text, sql)]) == {"lfem": 100.0, "lfem_exact": 0.0}


@pytest.mark.parametrize(
    "meta",
    [
        "",
        "[]",
        '{"sql": {"sel": 0, "agg": 0, "conds": []}}',
        '{"sql": {"sel": 0, "agg": 0, "conds": [[1, 2]]}, "header": ["a"]}',
        '{"sql": {"sel": 0, "agg": 0, "conds": []}, "header": []}',
        '{"sql": {"sel": null, "agg": 0, "conds": []}, "header": ["a"]}',
    ],
)
def test_bad_meta_is_a_data_error_that_names_the_example(meta: str) -> None:
    with pytest.raises(DataError, match="'q7'"):
        score("lfem", [Item("select a from table", ("x",), "q7", meta)])


WORDS = st.sampled_from(["select", "count", "year", "score", "from", "table", "where", "and", "=", ">", "<", "", "x"])


@given(st.lists(WORDS, max_size=14).map(" ".join), st.lists(st.sampled_from(["", "year", "score", "a b"]), min_size=1))
def test_every_text_is_parsed_or_refused(text: str, header: list[str]) -> None:
    for parse in (parse_fuzzy, parse_exact):
        try:
            query = parse(text, tuple(header))
        except UnparsableSqlError:
            continue
        assert all(0 <= index < len(header) for index in (query.sel, *(column for column, _, _ in query.conds)))
        assert 0 <= query.agg < 6


VALUES = st.text("bcxyz 123", min_size=1).map(lambda text: " ".join(text.split())).filter(bool)
CONDITIONS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), VALUES), max_size=4)


@given(st.integers(0, 4), st.integers(0, 5), CONDITIONS)
def test_a_rendered_query_scores_full_marks(sel: int, agg: int, conds: list[tuple[int, int, str]]) -> None:
    text = " ".join(f"select {('', 'max', 'min', 'count', 'sum', 'avg')[agg]} {HEADER[sel]} from table".split())
    if conds:
        text += " where " + " and ".join(f"{HEADER[column]} {'=><'[op]} {value}" for column, op, value in conds)
    assert score("lfem", [item(text, {"sel": sel, "agg": agg, "conds": conds})]) == {"lfem": 100, "lfem_exact": 100}


def gold_items(folder: Path, limit: int) -> list[Item]:
    """Return gold answers of the test set, with headers made of the columns used by the queries of the same table."""
    with gzip.open(folder / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    with gzip.open(folder / "test.human_readable.csv.gz", "rt", encoding="utf-8", newline="") as file:
        answers = [row["sql"] for row in csv.DictReader(file)]
    assert len(records) == len(answers) == 15_878
    pairs = list(zip(records, answers, strict=True))[:limit]

    columns: dict[str, dict[int, str]] = defaultdict(dict)
    for record, answer in pairs:
        columns[record["table_id"]].update(names_in(answer, record["sql"]))
    items = []
    for number, (record, answer) in enumerate(pairs):
        known = sorted(columns[record["table_id"]].items())
        positions = {column: position for position, (column, _) in enumerate(known)}
        sql = record["sql"] | {
            "sel": positions[record["sql"]["sel"]],
            "conds": [[positions[column], op, value] for column, op, value in record["sql"]["conds"]],
        }
        meta = json.dumps({"sql": sql, "header": [name for _, name in known]})
        items.append(Item(" ".join(answer.lower().split()), (answer,), str(number), meta))
    return items


def names_in(answer: str, sql: dict[str, Any]) -> dict[int, str]:
    """Return the column names in a rendered query, by column index."""
    head, _, tail = answer.partition(" FROM table")
    aggregate = ("", "MAX ", "MIN ", "COUNT ", "SUM ", "AVG ")[sql["agg"]]
    names = {sql["sel"]: head.removeprefix("SELECT ").removeprefix(aggregate)}
    tail = tail.removeprefix(" WHERE ")
    for column, op, value in sql["conds"]:
        name, _, tail = tail.partition(f" {'=><'[op]} {value}")
        names[column] = name.removeprefix(" AND ")
    return names


@pytest.mark.shared_data
def test_gold_answers_of_wikisql_score_close_to_full_marks(shared_data: Path) -> None:
    items = gold_items(shared_data / "raw" / "wikisql", limit=300)
    values = score("lfem", items)
    assert values["lfem"] > 97
    assert values["lfem_exact"] > 97
    # The answer to the next question is nearly always wrong.
    shifted = [Item(b.prediction, a.references, a.sample_id, a.meta) for a, b in pairwise(items)]
    assert score("lfem", shifted)["lfem"] < 5


@pytest.mark.shared_data
def test_gold_answers_of_the_whole_test_set_score_what_the_references_give_them(shared_data: Path) -> None:
    """98.375 is also what L2KD's ``metrics.py`` gives for these items."""
    table = load(TaskConfig(name="wikisql", test="all"), "test", data_config(shared_data / "raw"))
    rows = table.select(["answer", "references", "sample_id", "meta"]).to_pylist()
    items = [Item(row["answer"], tuple(row["references"]), row["sample_id"], row["meta"]) for row in rows]
    assert len(items) == 15_878
    values = score("lfem", items)
    assert values["lfem"] == pytest.approx(98.375, abs=0.0005)
    assert values["lfem_exact"] == pytest.approx(99.981, abs=0.0005)
