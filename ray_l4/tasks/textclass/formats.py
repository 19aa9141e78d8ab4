"""Readers of the three file formats of text-classification data.

The context is the title and the body joined by one space: exactly the same string from every format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray_l4.errors import DataError
from ray_l4.tasks.delimited import read_rows
from ray_l4.tasks.files import find, has_file, read_json_list
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.text_lines import read_lines
from ray_l4.tasks.textclass.corpora import Corpus

Reader = Callable[[Path, Corpus, BadRecords], Iterator[Row]]


def read_original(path: Path, corpus: Corpus, bad: BadRecords) -> Iterator[Row]:
    """Read Zhang et al.'s CSV, without a header: the class number, from 1, then the columns of text.

    Raises:
        DataError: ``classes.txt`` in the same folder lists other classes, or the file is not CSV.
    """
    _check_classes(path.parent, corpus)
    for number, (line, record) in enumerate(read_rows(path)):
        where = f"{path.name}, line {line}"
        if len(record) != corpus.columns:
            bad.add(where, f"{len(record)} columns, expected {corpus.columns}: the class and the text")
        elif not (record[0].isdecimal() and 1 <= int(record[0]) <= len(corpus.classes)):
            bad.add(where, f"class {record[0]!r}, expected a number from 1 to {len(corpus.classes)}")
        else:
            name = corpus.classes[int(record[0]) - 1]
            yield _row(corpus, " ".join(record[1:]), name, str(number), where)


def _check_classes(folder: Path, corpus: Corpus) -> None:
    if not has_file(folder, "classes.txt"):
        return
    path = find(folder, "classes.txt")
    listed = tuple(corpus.class_of(line) for _, line in read_lines(path))
    if listed != corpus.classes:
        raise DataError(f"{path}: expected the classes {', '.join(corpus.classes)}, one per line, in this order.")


_TITLE_AND_TEXT = re.compile(r"(?:Title: (.*?)\n)?Text: (.*)\n?", re.DOTALL)


def read_titled(path: Path, corpus: Corpus, bad: BadRecords) -> Iterator[Row]:
    r"""Read O-LoRA's JSON: a list of ``{"label": ..., "sentence": "Title: ...\nText: ...\n"}``; Yelp has no titles."""
    for number, record in enumerate(read_json_list(path)):
        where = f"{path.name}, record {number}"
        match = _TITLE_AND_TEXT.fullmatch(_text(record, "sentence"))
        if match is None:
            bad.add(where, "expected a label, and a sentence of the form 'Title: ... Text: ...'")
            continue
        text = " ".join(part for part in match.groups() if part is not None)
        yield from _named(corpus, text.removesuffix("\n"), _text(record, "label"), _id(path, number), where, bad)


def _text(record: Any, key: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, str) else ""


def read_tabbed(path: Path, corpus: Corpus, bad: BadRecords) -> Iterator[Row]:
    """Read LFPT5's lines: the text, a tab and the class in one or two words."""
    for number, (line, record) in enumerate(read_lines(path)):
        where = f"{path.name}, line {line}"
        text, tab, label = record.rpartition("\t")
        if tab:
            yield from _named(corpus, text, label, _id(path, number), where, bad)
        else:
            bad.add(where, "expected a text, a tab and a class")


def _id(path: Path, number: int) -> str:
    """Return an id that is unique over all files of a split: ``lfpt5_0_42.train-17``."""
    return f"{path.name.split('.json')[0].split('.txt')[0]}-{number}"


def _named(corpus: Corpus, text: str, label: str, sample_id: str, where: str, bad: BadRecords) -> Iterator[Row]:
    name = corpus.class_of(label)
    if name is None:
        bad.add(where, f"unknown class {label!r}, expected one of {', '.join(corpus.classes)}")
    else:
        yield _row(corpus, text, name, sample_id, where)


def _row(corpus: Corpus, text: str, name: str, sample_id: str, where: str) -> Row:
    return Row(
        context=corpus.clean(text), question=corpus.question, references=[name], sample_id=sample_id, where=where
    )
