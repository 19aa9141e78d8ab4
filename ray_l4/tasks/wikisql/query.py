"""WikiSQL queries and their conversion to examples (REFERENCE.md#wikisql)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ray_l4.tasks.rows import Row

QUESTION = "what is the translation from english to sql?"

AGGREGATORS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<", "OP")
KEYWORDS = (
    "MAX, MIN, COUNT, SUM, AVG, =, >, <, OP, SELECT, WHERE, AND, COL, TABLE, CAPTION, PAGE, SECTION, "
    "OP, COND, QUESTION, AGG, AGGOPS, CONDOPS"
)
"""Listed in every context. ``OP`` occurs twice: as the fourth operator and as a symbol."""

Condition = tuple[int, int, str | int | float]
"""(column, operator, value), the first two as numbers."""


@dataclass(frozen=True)
class Query:
    """A question, the column names of its table, and its query in WikiSQL's form."""

    number: int
    """Index in the split, from 0."""
    question: str
    header: list[str]
    sel: int
    """Index of the selected column in ``header``."""
    agg: int
    """Index into ``AGGREGATORS``."""
    conds: Sequence[Condition]


def row_of(query: Query) -> Row:
    """Return the example of one question, lower-cased; ``meta`` contains the query and the header."""
    sql = {"sel": query.sel, "agg": query.agg, "conds": query.conds}
    meta = {"sql": sql, "header": [name.lower() for name in query.header]}
    return Row(
        context=context_of(query.header, query.question).lower(),
        question=QUESTION,
        references=[answer_of(query).lower()],
        sample_id=str(query.number),
        meta=json.dumps(meta, ensure_ascii=False),
        where=f"question {query.number}",
    )


def context_of(header: list[str], question: str) -> str:
    """Return columns, keywords and question as one text, without a space before the hyphens."""
    return f"The table has columns {', '.join(header)} and key words {KEYWORDS}-- {question}"


def answer_of(query: Query) -> str:
    """Return the query as text, with every run of whitespace replaced by one space."""
    text = f"SELECT {AGGREGATORS[query.agg]} {query.header[query.sel]} FROM table"
    if query.conds:
        conditions = (f"{query.header[column]} {OPERATORS[op]} {value}" for column, op, value in query.conds)
        text += f" WHERE {' AND '.join(conditions)}"
    return " ".join(text.split())
