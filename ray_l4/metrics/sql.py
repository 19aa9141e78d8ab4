"""Exact match of SQL logical forms, "lfEM" (REFERENCE.md#logical-form).

From Zhong et al. 2017, with the parsers of decaNLP and LAMOL. A prediction such as ``select count player from table
where team = ajax`` is parsed into indices of column, aggregate and conditions and compared with the gold query,
including the order of conditions. There are two parsers:

- *fuzzy* (LAMOL, L2KD; comparable with the papers): a column name only needs to resemble one of the header. The parser
  splits at the letters ``where`` and ``and`` anywhere, even inside words, and at every ``=``, ``>`` and ``<``. A value
  that contains an operator or (except in the last condition) ``and`` is therefore never correct: perfect answers to
  the test set score 98.375. The published numbers have the same defect, so it is kept.
- *exact* (decaNLP): column names must be equal and values keep their spaces.

The header is lower-cased. Predictions are not, because WikiSQL's answers are converted to lower case
(REFERENCE.md#wikisql).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from ray_l4.errors import DataError
from ray_l4.metrics.item import Item, percentage
from ray_l4.metrics.similarity import similarity

AGGREGATES = ("", "max", "min", "count", "sum", "avg")
OPERATORS = ("=", ">", "<")

_OPERATOR = re.compile("[=><]")
# Columns and operators are marked by words that no answer contains: a private-use character and the index.
_COLUMN, _CONDITION = "\ue000", "\ue001"
_CONDITION_START = re.compile(f"{_COLUMN}(\\d+) {_CONDITION}(\\d+)")

Header = tuple[str, ...]
Condition = tuple[int, int, str]


class UnparsableSqlError(ValueError):
    """The text is not a query over the table. Such a prediction scores 0."""


@dataclass(frozen=True)
class Query:
    """Logical form of a query: indices into the header, ``AGGREGATES`` and ``OPERATORS``; conditions in order."""

    sel: int
    agg: int
    conds: tuple[Condition, ...]


def logical_form_em(items: Sequence[Item]) -> dict[str, float]:
    """Return ``lfem`` (fuzzy, comparable with the papers) and ``lfem_exact``, in percent.

    The ``meta`` of an item is ``{"sql": {"sel", "agg", "conds": [[column, operator, value], ...]}, "header": [...]}``.
    Its references are not used.

    Raises:
        DataError: an item's ``meta`` does not have this form.
    """
    fuzzy, exact = [], []
    for item in items:
        gold, header = read_meta(item)
        fuzzy.append(_parse(parse_fuzzy, item.prediction, header) == _map_values(gold, _without_spaces))
        exact.append(_parse(parse_exact, item.prediction, header) == gold)
    return {"lfem": percentage(fuzzy), "lfem_exact": percentage(exact)}


def parse_fuzzy(text: str, header: Header) -> Query:
    """Parse like LAMOL: columns by similarity, values without spaces. ``header`` must be lower-case.

    Raises:
        UnparsableSqlError: the text is not a query over this table.
    """
    head, where, tail = text.partition("where")
    words = head.split()[1:-2]  # select ... from table
    sel, aggregated = _closest(header, " ".join(words), " ".join(words[1:]))
    agg = _aggregate(words) if aggregated else 0
    query = Query(sel, agg, _conditions(_repair(tail, header), header) if where else ())
    return _map_values(query, _without_spaces)


def parse_exact(text: str, header: Header) -> Query:
    """Parse like decaNLP: columns by equality, values with single spaces. ``header`` must be lower-case.

    Raises:
        UnparsableSqlError: the text is not a query over this table.
    """
    head, where, tail = text.partition("where")
    words = head.split()[1:-2]
    agg = 0 if " ".join(words) in header else _aggregate(words)
    column = " ".join(words[1:] if agg else words)
    if column not in header:
        raise UnparsableSqlError(f"there is no column {column!r}")
    return Query(header.index(column), agg, _conditions(tail, header) if where else ())


def _parse(parser: Callable[[str, Header], Query], text: str, header: Header) -> Query | None:
    try:
        return parser(text, header)
    except UnparsableSqlError:
        return None


def _aggregate(words: Sequence[str]) -> int:
    if not words or words[0] not in AGGREGATES:
        raise UnparsableSqlError(f"no aggregate at the start of {' '.join(words)!r}")
    return AGGREGATES.index(words[0])


@lru_cache(maxsize=1 << 15)
def _by_length(header: Header) -> tuple[int, ...]:
    """Return column indices, longest name first; names of equal length in the order of the header."""
    return tuple(sorted(range(len(header)), key=lambda column: -len(header[column])))


@lru_cache(maxsize=1 << 15)
def _closest(header: Header, *texts: str) -> tuple[int, int]:
    """Return the most similar pair of column and index in ``texts``; of ties, the longest name, then the first."""
    if "" in header and "" in texts:
        raise UnparsableSqlError("an empty column name cannot be compared with an empty text")
    candidates = ((column, which) for column in _by_length(header) for which in range(len(texts)))
    return max(candidates, key=lambda candidate: similarity(header[candidate[0]], texts[candidate[1]]))


def _repair(text: str, header: Header) -> str:
    """Replace the column names of conditions by the closest ones of the header (REFERENCE.md#logical-form, step 5).

    As in the references, pieces between operators are stripped, but not the parts that ``and`` divides them into: the
    blank before a column's name is compared with the header too.
    """
    operators = _OPERATOR.findall(text)
    if not operators:
        raise UnparsableSqlError(f"no operator in the condition {text!r}")
    first, *middle, last = (piece.strip() for piece in _OPERATOR.split(text))
    parts = [first, *(part for piece in middle for part in piece.split("and")), last]
    columns = [header[_closest(header, part)[0]] for part in parts[0::2]]
    if len(columns) < len(operators):
        raise UnparsableSqlError(f"there are more operators than columns in {text!r}")
    # A value that contains `and` leaves columns without operator, and the last one without value: that one is lost.
    names = [
        column if operator is None else f"{column} {operator}" for column, operator in zip_longest(columns, operators)
    ]
    return " and ".join(f"{name} {value}" for name, value in zip(names, parts[1::2], strict=False))


def _conditions(text: str, header: Header) -> tuple[Condition, ...]:
    """Parse ``column op value and column op value`` (REFERENCE.md#logical-form, step 6).

    Longer column names are replaced first, so that ``final score`` is not read as ``score``.
    """
    if _COLUMN in text or _CONDITION in text:
        raise UnparsableSqlError("the text contains a character that is reserved for parsing")
    text = f" {text} "
    for column in _by_length(header):
        text = text.replace(f" {header[column]} ", f" {_COLUMN}{column} ")
    words = [f"{_CONDITION}{OPERATORS.index(word)}" if word in OPERATORS else word for word in text.split()]
    before, *found = _CONDITION_START.split(" ".join(words))
    if before or not found:
        raise UnparsableSqlError("the conditions do not start with a column and an operator")
    triples = zip(found[0::3], found[1::3], found[2::3], strict=True)
    return tuple((int(column), int(operator), _value(rest, header)) for column, operator, rest in triples)


def _value(text: str, header: Header) -> str:
    """Return the value of a condition: without the ``and`` before the next one, with markers turned back into text."""
    words = text.split()
    if not words:
        raise UnparsableSqlError("a condition has no value")
    if words[-1] == "and":
        words.pop()
    return " ".join(_unmarked(word, header) for word in words)


def _unmarked(word: str, header: Header) -> str:
    if word.startswith(_COLUMN):
        return header[int(word[1:])]
    return OPERATORS[int(word[1:])] if word.startswith(_CONDITION) else word


def _map_values(query: Query, change: Callable[[str], str]) -> Query:
    conds = tuple((column, operator, change(value)) for column, operator, value in query.conds)
    return Query(query.sel, query.agg, conds)


def _without_spaces(value: str) -> str:
    return value.replace(" ", "")


def read_meta(item: Item) -> tuple[Query, Header]:
    """Return the gold query, with values as lower-case strings, and the lower-case header. Raises DataError."""
    try:
        meta: dict[str, Any] = json.loads(item.meta)
        gold = meta["sql"]
        conds = tuple((int(column), int(operator), str(value).lower()) for column, operator, value in gold["conds"])
        header = tuple(str(name).lower() for name in meta["header"])
        query = Query(int(gold["sel"]), int(gold["agg"]), conds)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(_bad_meta(item, repr(error))) from error
    if not header:
        raise DataError(_bad_meta(item, "the header is empty"))
    return query, header


def _bad_meta(item: Item, reason: str) -> str:
    form = '{"sql": {"sel": 0, "agg": 0, "conds": [[column, operator, value], ...]}, "header": [...]}'
    return f"example {item.sample_id!r}: metric 'lfem' needs meta in JSON of the form {form}, but: {reason}"
