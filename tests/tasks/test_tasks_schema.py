from __future__ import annotations

import logging

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import DataError
from ray_l4.tasks.rows import BadRecords
from ray_l4.tasks.schema import EXAMPLES, build_table


def row(number: int, **changes: object) -> dict[str, object]:
    base = {"context": f"c{number}", "question": "q", "references": ["a", "b"], "sample_id": str(number)}
    return {**base, **changes}


def test_a_table_has_the_schema_and_the_first_reference_as_answer() -> None:
    table = build_table("t", [row(0, meta="{}"), row(1)], BadRecords("x", 0.0))
    assert table.schema == EXAMPLES
    assert table.to_pylist() == [
        {
            "context": "c0",
            "question": "q",
            "answer": "a",
            "references": ["a", "b"],
            "task": "t",
            "sample_id": "0",
            "meta": "{}",
        },
        {
            "context": "c1",
            "question": "q",
            "answer": "a",
            "references": ["a", "b"],
            "task": "t",
            "sample_id": "1",
            "meta": "",
        },
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"context": None}, "context is missing"),
        ({"context": 3}, "context is of type int"),
        ({"question": ["q"]}, "question is of type list"),
        ({"context": " ", "question": "\n"}, "context and question are both blank"),
        ({"references": []}, "answer is an empty list"),
        ({"references": None}, "answer is missing"),
        ({"references": "a"}, "answer is of type str, expected text or a list"),
        ({"references": ["a", 7]}, "answer contains a value that is of type int"),
        ({"references": ["\ud800"]}, "answer contains a lone surrogate at character 0"),
        ({"context": "ab\udfff"}, "context contains a lone surrogate at character 2"),
        ({"sample_id": None}, "sample_id is missing"),
    ],
)
def test_an_unusable_row_is_counted_with_its_reason(changes: dict[str, object], reason: str) -> None:
    bad = BadRecords("x", 0.5)
    table = build_table("t", [row(0), row(1, **changes)], bad)
    assert table.column("sample_id").to_pylist() == ["0"]
    assert bad.count == 1
    assert bad.first[0].startswith("record 2: ")
    assert reason in bad.first[0]


def test_the_reader_says_where_a_bad_row_stands() -> None:
    bad = BadRecords("x", 1.0)
    build_table("t", [row(0), row(1, context=None, where="f.csv, line 9")], bad)
    assert bad.first == ["f.csv, line 9: context is missing, expected text"]


def test_too_many_bad_rows_refuse_and_show_the_first_three() -> None:
    rows = [row(n, context=None) if n < 5 else row(n) for n in range(100)]
    with pytest.raises(DataError) as caught:
        build_table("t", rows, BadRecords("things (train)", 0.04))
    message = str(caught.value)
    assert "things (train): 5 of 100 records cannot be used" in message
    assert "max_bad_fraction allows 4.00%" in message
    assert all(f"record {n}:" in message for n in (1, 2, 3))
    assert "record 4:" not in message


def test_few_bad_rows_are_dropped_but_never_silently(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(n, context=None) if n < 5 else row(n) for n in range(100)]
    with caplog.at_level(logging.WARNING):
        table = build_table("t", rows, BadRecords("things", 0.05))
    assert table.num_rows == 95
    assert "dropped 5 of 100 records" in caplog.text
    assert "record 1: context is missing" in caplog.text


def test_without_bad_records_the_summary_is_empty() -> None:
    assert BadRecords("x", 0.0).check(3) == ""


def test_no_record_is_an_error() -> None:
    with pytest.raises(DataError, match="things contains no usable records"):
        build_table("t", [], BadRecords("things", 1.0))


def test_only_bad_records_are_an_error_whatever_is_tolerated() -> None:
    with pytest.raises(DataError, match="contains no usable records"):
        build_table("t", [row(0, context=None)], BadRecords("things", 1.0))


def test_a_duplicate_id_is_an_error_that_names_both_records() -> None:
    rows = [row(0, where="line 2"), row(1), row(0, where="line 7")]
    with pytest.raises(DataError, match="sample id '0' occurs twice, at line 2 and at line 7"):
        build_table("t", rows, BadRecords("x", 1.0))


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8"), min_size=1), st.booleans()), min_size=1, max_size=30))
def test_rows_are_either_in_the_table_in_order_or_counted(records: list[tuple[str, bool]]) -> None:
    bad = BadRecords("x", 1.0)
    rows = [row(n, context=text, references=["a"] if good else []) for n, (text, good) in enumerate(records)]
    kept = [text for text, good in records if good]
    if not kept:
        with pytest.raises(DataError):
            build_table("t", rows, bad)
        return
    table = build_table("t", rows, bad)
    assert isinstance(table, pa.Table)
    assert table.column("context").to_pylist() == kept
    assert bad.count == len(records) - len(kept)
