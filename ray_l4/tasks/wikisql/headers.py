"""Questions of the original ``<split>.jsonl``, with the headers of their tables or what can be known of them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_l4.errors import DataError
from ray_l4.tasks.files import find, need_columns, read_csv, read_lines
from ray_l4.tasks.rows import BadRecords, Split
from ray_l4.tasks.wikisql.query import AGGREGATORS, OPERATORS, Query

READABLE = {"dev": "validation.human_readable.csv", "test": "test.human_readable.csv"}
"""Line i of these holds the query of line i of ``<split>.jsonl`` with the columns by name."""


def queries_with_tables(folder: Path, split: Split, bad: BadRecords) -> Iterator[Query]:
    """The questions of the original release, with full headers from ``<split>.tables.jsonl``."""
    tables = find(folder, f"{split}.tables.jsonl")
    headers = {table["id"]: table["header"] for _, table in _records(tables, bad, "id", "header")}
    for number, record in _questions(find(folder, f"{split}.jsonl"), bad):
        if record["table_id"] not in headers:
            bad.add(f"{split}.jsonl, line {number + 1}", f"table {record['table_id']} is not in {tables.name}")
            continue
        header = headers[record["table_id"]]
        if query := _query(number, record, header, {column: column for column in range(len(header))}):
            yield query
        else:
            bad.add(f"{split}.jsonl, line {number + 1}", f"its sql names a column that {header} does not have")


def queries_with_names(folder: Path, split: Split, bad: BadRecords) -> Iterator[Query]:
    """The questions of a release without tables, with headers of the columns that the split's queries name."""
    questions = find(folder, f"{split}.jsonl")
    records = list(_questions(questions, bad))
    readable = find(folder, READABLE[split])
    columns, lines = read_csv(readable)
    need_columns(readable, columns, "question", "sql")
    texts = [record["sql"] or "" for _, record in lines]
    if records and len(texts) <= records[-1][0]:
        raise DataError(f"{readable} holds {len(texts)} queries, fewer than {questions} has questions; fetch it again.")

    names: dict[str, dict[int, str]] = defaultdict(dict)
    for number, record in records:
        for column, name in named_columns(record["sql"], texts[number]).items():
            names[record["table_id"]].setdefault(column, name)
    for number, record in records:
        known = sorted(names[record["table_id"]].items())
        place = {column: index for index, (column, _) in enumerate(known)}
        if query := _query(number, record, [name for _, name in known], place):
            yield query
        else:
            bad.add(f"{split}.jsonl, line {number + 1}", f"its sql does not agree with the query in {readable.name}")


def named_columns(sql: dict[str, Any], readable: str) -> dict[int, str]:
    """The names of the columns of ``sql`` as the same query with names gives them; {} where the two disagree.

    Aggregator, operators and values are known from ``sql``, so only the names are left open.
    """
    aggregator = AGGREGATORS[sql["agg"]]
    pattern = f"SELECT {aggregator} (.+) FROM table" if aggregator else "SELECT (.+) FROM table"
    if sql["conds"]:
        conditions = (rf"(.+?) {OPERATORS[op]} {re.escape(_blanks(str(value)))}" for _, op, value in sql["conds"])
        pattern += f" WHERE {' AND '.join(conditions)}"
    match = re.fullmatch(pattern, _blanks(readable))
    return dict(zip([sql["sel"], *(cond[0] for cond in sql["conds"])], match.groups(), strict=True)) if match else {}


def _blanks(text: str) -> str:
    """Every whitespace character as a blank: the two files differ in thin spaces."""
    return re.sub(r"\s", " ", text)


def _query(number: int, record: dict[str, Any], header: list[str], place: dict[int, int]) -> Query | None:
    """The record's query with columns counted in ``header``, or None when one of them is not there.

    ``place`` gives a column's number in ``header`` by its original number.
    """
    sql = record["sql"]
    if not {sql["sel"], *(column for column, _, _ in sql["conds"])} <= place.keys():
        return None
    conds = [(place[column], op, value) for column, op, value in sql["conds"]]
    return Query(number, record["question"], header, place[sql["sel"]], sql["agg"], conds)


def _questions(path: Path, bad: BadRecords) -> Iterator[tuple[int, dict[str, Any]]]:
    """The questions whose query has WikiSQL's form, with their line numbers from 0."""
    for number, record in _records(path, bad, "table_id", "question", "sql"):
        if _is_sql(record["sql"]):
            yield number, record
        else:
            bad.add(f"{path.name}, line {number + 1}", f"not a query (sel, agg, conds): {record['sql']!r}")


def _is_sql(sql: Any) -> bool:
    try:
        known = sql["agg"] in range(len(AGGREGATORS)) and isinstance(sql["sel"], int)
        return known and all(op in range(len(OPERATORS)) and isinstance(column, int) for column, op, _ in sql["conds"])
    except (KeyError, TypeError, ValueError):
        return False


def _records(path: Path, bad: BadRecords, *keys: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file that have ``keys``, with their line numbers from 0."""
    for line, text in read_lines(path):
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            bad.add(f"{path.name}, line {line}", f"not JSON: {error.msg}")
            continue
        missing = [key for key in keys if not isinstance(record, dict) or key not in record]
        if missing:
            bad.add(f"{path.name}, line {line}", f"no key {missing[0]!r}")
        else:
            yield line - 1, record
