"""Training questions of WikiSQL, rebuilt from the text2sql-data release.

The release groups questions that share a query template. A template names columns (``SCHOOL/CLUB_TEAM_FIELD``) and has
variables in place of values; each question gives its own values. ``sql-original`` is the original query, with column
numbers, of the group's first question only. The reconstruction relies on two facts, checked against the original test
file:

* Templates list conditions alphabetically but number their variables in the original order: sorted by variable, the
  conditions are in the original order in all 6,912 non-first questions of the test split whose values are given.
* Column numbers and values of the first question come from ``sql-original``, values of the others from ``variables``.

Headers: TabFact's list of a table's columns is used if it agrees with every column that a training query names, in
spelling (letters and digits) and, where the number is known, in position; the queries' spelling replaces TabFact's.
Otherwise the header consists of the named columns: those with a known number in order, then the others. Of 56,355
questions 56,324 are usable, 49,446 of them with a full header (15,882 of 17,983 tables).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_l4.tasks.files import find, read_json_list
from ray_l4.tasks.rows import BadRecords
from ray_l4.tasks.text_lines import read_lines
from ray_l4.tasks.wikisql.query import AGGREGATORS, OPERATORS, Query

GROUPS = "text2sql-data.wikisql.json"
TABFACT = "tabfact_headers.tsv"

# Columns whose name contains '.' lack the alias; tables with an apostrophe in a column name have no alias at all.
TEMPLATE = re.compile(r"SELECT (.*?)_FIELD FROM (?:TABLE AS TABLEalias0|table)(?: WHERE (.*?))? ?;", re.DOTALL)
TEMPLATE_CONDITION = re.compile(r'(.*?)_FIELD (=|>|<|OP) ("?)var(\d+)\3', re.DOTALL)
ORIGINAL = re.compile(r"SELECT (MAX|MIN|COUNT|SUM|AVG)? ?col(\d+) FROM table(?: WHERE (.*))?", re.DOTALL)
ORIGINAL_CONDITION = re.compile(r"(?:^| AND )col(\d+) (=|>|<|OP) ")

Columns = dict[str, int | None]
"""Column names used by the queries of one table, in order of first appearance, with their numbers if known."""


@dataclass(frozen=True)
class Template:
    """A group's query: names and operators in original order, and the first question's column numbers and values."""

    agg: int
    names: list[str]
    """The selected column, then the columns of the conditions."""
    operators: list[int]
    variables: list[str]
    first_numbers: list[int]
    first_values: list[str]


@dataclass(frozen=True)
class NamedQuery:
    """A question and its query with column names."""

    number: int
    table: str
    question: str
    template: Template
    values: list[str]


def train_queries(folder: Path, bad: BadRecords) -> Iterator[Query]:
    """Yield the training questions in the release's order, numbered from 0; unusable ones are counted in ``bad``.

    Raises:
        DataError: a file is missing or unreadable.
    """
    columns: dict[str, Columns] = defaultdict(dict)
    questions = list(_named_queries(find(folder, GROUPS), columns, bad))
    tabfact = {
        table: cells.split("#")
        for table, _, cells in (line.partition("\t") for _, line in read_lines(find(folder, TABFACT)))
    }
    headers = {
        table: full_header(names, tabfact.get(table, [])) or partial_header(names) for table, names in columns.items()
    }
    for query in questions:
        header, template = headers[query.table], query.template
        sel, *conditions = (header.index(name) for name in template.names)
        conds = list(zip(conditions, template.operators, query.values, strict=True))
        yield Query(query.number, query.question, header, sel, template.agg, conds)


def _named_queries(path: Path, columns: dict[str, Columns], bad: BadRecords) -> Iterator[NamedQuery]:
    """Yield the usable training questions; adds each table's column names to ``columns``."""
    number = -1
    for index, group in enumerate(read_json_list(path)):
        try:
            template = parse_group(group["sql"][0], group["sql-original"][0])
            sentences = [
                (position, sentence["original"], sentence["table-id"], sentence["variables"])
                for position, sentence in enumerate(group["sentences"])
                if sentence["question-split"] == "train"
            ]
        except (KeyError, IndexError, TypeError) as error:
            bad.add(f"{path.name}, group {index}", f"not a group of questions: {error!r}")
            continue
        for position, question, table, variables in sentences:
            number += 1
            first = position == 0
            where = f"{path.name}, group {index}, question {position}"
            if template is None:
                bad.add(where, "its query cannot be parsed")
                continue
            values = template.first_values if first else _values(template, variables)
            if values is None:
                bad.add(where, "a value of its query is missing")
                continue
            _note(columns[table], template, first)
            yield NamedQuery(number, table, question, template, values)


def parse_group(template: str, original: str) -> Template | None:
    """Parse the two queries of a group; None if one cannot be parsed or they do not match."""
    outer, first = TEMPLATE.fullmatch(template), ORIGINAL.fullmatch(original)
    if not outer or not first:
        return None
    matches = [TEMPLATE_CONDITION.fullmatch(text) for text in outer[2].split(" AND ")] if outer[2] else []
    if None in matches:
        return None
    conditions = sorted((match for match in matches if match), key=lambda match: int(match[4]))
    numbers, operators, values = _original_conditions(first[3])
    if operators != [OPERATORS.index(match[2]) for match in conditions]:
        return None
    aggregator = first[1] or ""
    selected = outer[1].removeprefix(aggregator).lstrip(" ")
    return Template(
        agg=AGGREGATORS.index(aggregator),
        names=[_readable(selected), *(_readable(match[1]) for match in conditions)],
        operators=operators,
        variables=[f"var{match[4]}" for match in conditions],
        first_numbers=[int(first[2]), *numbers],
        first_values=values,
    )


def _original_conditions(text: str | None) -> tuple[list[int], list[int], list[str]]:
    """Return column numbers, operators and values of ``colA = value AND colB > value``."""
    text = text or ""
    matches = list(ORIGINAL_CONDITION.finditer(text))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    values = [text[match.end() : end] for match, end in zip(matches, ends, strict=False)]
    return [int(match[1]) for match in matches], [OPERATORS.index(match[2]) for match in matches], values


def _readable(name: str) -> str:
    return name.removeprefix("TABLEalias0.").replace("_", " ").strip().lower()


def _values(template: Template, variables: dict[str, str]) -> list[str] | None:
    """Return the values of a group's later question in the original order, or None if one is missing."""
    values = [variables[name] for name in template.variables if name in variables]
    return values if len(values) == len(template.variables) else None


def _note(columns: Columns, template: Template, first: bool) -> None:
    """Add a query's column names to ``columns``, with numbers if it is its group's first question."""
    for name, number in zip(template.names, template.first_numbers, strict=True):
        known = columns.setdefault(name, None)
        if first and known is None:
            columns[name] = number


def full_header(columns: Columns, cells: list[str]) -> list[str] | None:
    """Return TabFact's columns (``cells``) in the queries' spelling, or None if they do not match the named ones."""
    header = list(cells)
    positions = {_letters(cell): index for index, cell in reversed(list(enumerate(cells)))}
    for name, number in columns.items():
        index = positions.get(_letters(name)) if number is None else number
        if index is None or index >= len(cells) or _letters(cells[index]) != _letters(name):
            return None
        header[index] = name
    return header if all(name in header for name in columns) else None


def partial_header(columns: Columns) -> list[str]:
    """Return the named columns: those with a known number in order, then the others by first appearance."""
    return sorted(columns, key=lambda name: (columns[name] is None, columns[name] or 0))


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
