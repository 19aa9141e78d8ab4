"""Generator of mini.sql: a question about a small table and its query.

The format is that of REFERENCE.md#wikisql, without the list of keywords. No column or value contains ``and`` or
``where``, because the metric splits queries at these letters (REFERENCE.md#logical-form).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import count
from random import Random

from ray_l4.tasks.embedded.grammar import Keep, draw_kept
from ray_l4.tasks.rows import Row
from ray_l4.tasks.wikisql.query import AGGREGATORS, OPERATORS, QUESTION, Condition, Query, answer_of

TEXTS = {
    "city": ("paris", "rome", "tokyo", "cairo", "lima", "oslo"),
    "team": ("lions", "tigers", "bears", "wolves", "eagles", "sharks"),
    "coach": ("adams", "baker", "clark", "davis", "evans", "ford"),
    "colour": ("red", "blue", "green", "white", "black", "yellow"),
    "sport": ("football", "tennis", "hockey", "golf", "boxing", "rugby"),
}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
NUMERIC = ("points", "rank", "games", "age")

SELECTS = ("what is the {}", "which {} is it", "tell me the {}", "name the {}", "show the {}")
AGGREGATES = {"MAX": "highest", "MIN": "lowest", "COUNT": "number of", "SUM": "total", "AVG": "average"}
COMPARISONS = {"=": "{} is {}", ">": "{} is more than {}", "<": "{} is less than {}"}

Question = tuple[str, Query]


def rows(generator: Random, keep: Keep) -> Iterator[Row]:
    """Yield questions with their queries, endlessly; ``meta`` has WikiSQL's format."""
    for number in count():
        context, query = draw_kept(partial(_question, generator, number), keep)
        sql = {"sel": query.sel, "agg": query.agg, "conds": query.conds}
        yield Row(
            context=context,
            question=QUESTION,
            references=[answer_of(query).lower()],
            sample_id=str(number),
            meta=json.dumps({"sql": sql, "header": query.header}),
        )


def _question(generator: Random, number: int) -> Question:
    numeric = generator.sample(NUMERIC, generator.choice((1, 2)))
    header = generator.sample(list(TEXTS), 4 - len(numeric)) + numeric
    generator.shuffle(header)
    columns = generator.sample(range(4), generator.choice((2, 2, 3)))
    sel, asked = columns[0], columns[1:]
    aggregators = list(AGGREGATES) if header[sel] in NUMERIC else ["COUNT"]
    aggregator = generator.choice(aggregators) if generator.random() < 0.4 else ""
    conds = [_condition(generator, column, header[column]) for column in asked]
    said = " and ".join(
        f"the {COMPARISONS[OPERATORS[op]].format(header[column], value)}" for column, op, value in conds
    )
    target = f"{AGGREGATES[aggregator]} {header[sel]}" if aggregator else header[sel]
    question = f"{generator.choice(SELECTS).format(target)} when {said}"
    context = f"the table has columns {', '.join(header)}-- {question}"
    return context, Query(number, question, header, sel, AGGREGATORS.index(aggregator), conds)


def _condition(generator: Random, column: int, name: str) -> Condition:
    if name in TEXTS:
        return column, OPERATORS.index("="), generator.choice(TEXTS[name])
    return column, OPERATORS.index(generator.choice(list(COMPARISONS))), generator.choice(NUMBERS)
