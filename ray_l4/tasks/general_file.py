"""The general text of ``evaluation.general``, read from a text file or from a column of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ray_l4.config.experiment import FEWEST_GENERAL
from ray_l4.config.text import is_blank
from ray_l4.errors import DataError
from ray_l4.tasks.files import OPENERS, MissingFileError, read_text
from ray_l4.tasks.rows import BadRecords

TEXT_COLUMNS = ("text", "article")
"""Columns of a table that hold its text, the first that there is."""
KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
SEPARATOR = "\n\n"
"""What stands between the texts of two rows of a table."""
_KEY = "evaluation.general"
_CHARACTERS = 64
"""Characters that are read for each token that is used at most."""
_ROWS_TO_JUDGE = 100
"""Rows of a table by which it is decided which of its columns hold text."""


def check_general_file(path: Path) -> None:
    """Raise DataError if there is no such file, or if its name does not end as that of a text or a table does."""
    hint = f"expected a file {', '.join(KINDS[:-1])} (plain, .gz or .bz2) or {KINDS[-1]}"
    if not path.exists():
        raise MissingFileError(
            f"{_KEY}: no file {path}; {hint}. Give its new place, or leave the setting out: nothing that is learned "
            "depends on it."
        )
    if _kind(path) not in KINDS:
        raise DataError(f"{_KEY}: {path} is {'a folder' if path.is_dir() else 'of another kind'}; {hint}.")


def read_general_text(path: Path, most_tokens: int) -> str:
    """Return the beginning of the text in a file, from which at most ``most_tokens`` tokens are to be taken.

    The texts of a table's rows follow each other with a blank line in between; rows without text are left out.

    Raises:
        DataError: the file is missing, unreadable, not UTF-8, of another kind, without a column of text, or has less
            text than the fewest tokens that a perplexity needs.
    """
    check_general_file(path)
    characters = _CHARACTERS * most_tokens
    text = read_text(path)[:characters] if _kind(path) == ".txt" else _text_of_table(path, characters)
    if len(text.strip().encode()) < FEWEST_GENERAL:  # a token has a byte at least
        refuse_short(path, f"{len(text.strip().encode())} bytes of text")
    return text


def refuse_short(path: Path, what: str) -> None:
    """Raise DataError about a text that is too short. ``what``: what there is of it."""
    raise DataError(
        f"{_KEY}: {path} has {what}, and a perplexity needs {FEWEST_GENERAL} tokens at least; give a longer text."
    )


def _kind(path: Path) -> str:
    """Return the suffix that says what is in a file, without that of its compression."""
    if path.is_dir():
        return path.suffix if path.suffix == ".parquet" else ""
    suffixes = path.suffixes
    packed = bool(suffixes) and suffixes[-1] in OPENERS
    kind = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    return "" if packed and kind == ".parquet" else kind


def _text_of_table(path: Path, characters: int) -> str:
    from ray_l4.tasks.custom import records_of  # loads PyArrow, which a text file does not need

    bad = BadRecords(f"{_KEY}: {path}", 1.0)
    names, records = records_of(path, TEXT_COLUMNS[:1], bad)
    if bad.count:
        raise DataError(f"{_KEY}: {path}: {bad.count} records cannot be read ({bad.first[0]}). Write the file again.")
    first = list(islice(records, _ROWS_TO_JUDGE))
    column = _column(path, names, [record for _, record in first])
    texts, length = [], 0
    for where, record in chain(first, records):
        value = record.get(column)
        if value is None or (isinstance(value, str) and is_blank(value)):
            continue
        if not isinstance(value, str):
            raise DataError(f"{_KEY}: {where}: column {column!r} holds {type(value).__name__}; expected text.")
        texts.append(value)
        length += len(value) + len(SEPARATOR)
        if length >= characters:
            break
    return SEPARATOR.join(texts)[:characters]


def _column(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the column that holds the text: one of ``TEXT_COLUMNS``, or the only one with words."""
    known = next((name for name in TEXT_COLUMNS if name in names), None)
    if known is not None:
        return known
    with_words = [name for name in names if any(_is_words(row.get(name)) for row in rows)]
    if len(with_words) != 1:
        raise DataError(
            f"{_KEY}: {path} has the columns {', '.join(map(repr, names))}; expected a column 'text' or 'article', or "
            "a single column of text. Rename the one that holds the text."
        )
    return with_words[0]


def _is_words(value: object) -> bool:
    """Return whether a value is a text, and no number written out, as those of CSV files are."""
    if not isinstance(value, str) or is_blank(value):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
