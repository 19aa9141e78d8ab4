"""Questions of the original ``<split>.jsonl`` with the headers of their tables, complete or reconstructed."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_l4.errors import DataError
from ray_l4.tasks.delimited import read_csv
from ray_l4.tasks.files import find, require_columns
from ray_l4.tasks.rows import BadRecords, Split
from ray_l4.tasks.text_lines import read_lines
from ray_l4.tasks.wikisql.query import AGGREGATORS, OPERATORS, Query

READABLE = {"dev": "validation.human_readable.csv", "test": "test.human_readable.csv"}
"""By split, the file whose record i is the query of line i of ``<split>.jsonl`` with column names."""


def queries_with_tables(folder: Path, split: Split, bad: BadRecords) -> Iterator[Query]:
    """Yield the questions of the original release, with full headers from ``<split>.tables.jsonl``."""
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
            bad.add(f"{split}.jsonl, line {number + 1}", f"its sql refers to a column that {header} does not have")


def queries_with_names(folder: Path, split: Split, bad: BadRecords) -> Iterator[Query]:
    """Yield the questions of a release without tables, with headers of the columns that the split's queries name.

    Raises:
        DataError: a file is missing or unreadable, or the two do not have the same number of queries.
    """
    questions = find(folder, f"{split}.jsonl")
    records = list(_questions(questions, bad))
    readable = find(folder, READABLE[split])
    columns, lines = read_csv(readable)
    require_columns(readable, columns, "question", "sql")
    texts = [record["sql"] or "" for _, record in lines]
    if records and len(texts) <= records[-1][0]:
        raise DataError(
            f"{readable} has {len(texts)} queries, fewer than {questions} has questions; download it again."
        )

    names: dict[str, dict[int, str]] = defaultdict(dict)
    for number, record in records:
        for column, name in named_columns(record["sql"], texts[number]).items():
            names[record["table_id"]].setdefault(column, name)
    for number, record in records:
        known = sorted(names[record["table_id"]].items())
        index_of = {column: index for index, (column, _) in enumerate(known)}
        if query := _query(number, record, [name for _, name in known], index_of):
            yield query
        else:
            bad.add(f"{split}.jsonl, line {number + 1}", f"its sql does not match the query in {readable.name}")


def named_columns(sql: dict[str, Any], readable: str) -> dict[int, str]:
    """Return the names of the columns of ``sql`` from the same query with names; empty if the two do not match.

    Args:
        sql: a query with column numbers. It gives aggregator, operators and values, so only the names are unknown.
        readable: the same query with column names.

    Returns:
        By column number, the name.
    """
    aggregator = AGGREGATORS[sql["agg"]]
    pattern = f"SELECT {aggregator} (.+) FROM table" if aggregator else "SELECT (.+) FROM table"
    if sql["conds"]:
        conditions = (rf"(.+?) {OPERATORS[op]} \{number}" for number, (_, op, _) in enumerate(sql["conds"], start=1))
        pattern += f" WHERE {' AND '.join(conditions)}"
    # The values stand before the query, each on a line of its own, so that queries of one form share a pattern.
    values = [_blanks(str(value)) for _, _, value in sql["conds"]]
    match = re.fullmatch(r"(.*)\n" * len(values) + pattern, "\n".join([*values, _blanks(readable)]))
    found = match.groups()[len(values) :] if match else ()
    return dict(zip([sql["sel"], *(cond[0] for cond in sql["conds"])], found, strict=True)) if match else {}


def _blanks(text: str) -> str:
    """Replace every whitespace character by a space, because the two files differ in thin spaces."""
    return re.sub(r"\s", " ", text)


def _query(number: int, record: dict[str, Any], header: list[str], index_of: dict[int, int]) -> Query | None:
    """Return the record's query with column numbers that refer to ``header``, or None if a column is not in it.

    ``index_of`` maps a column's original number to its index in ``header``.
    """
    sql = record["sql"]
    if not {sql["sel"], *(column for column, _, _ in sql["conds"])} <= index_of.keys():
        return None
    conds = [(index_of[column], op, value) for column, op, value in sql["conds"]]
    return Query(number, record["question"], header, index_of[sql["sel"]], sql["agg"], conds)


def _questions(path: Path, bad: BadRecords) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the questions whose query has WikiSQL's form, with their line numbers from 0."""
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
    """Yield the objects of a JSONL file that have ``keys``, with their line numbers from 0."""
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
