"""Reader of the reference implementations' files, ``<task>_to_squad-<split>-v2.0.json`` (REFERENCE.md#data-schema).

For woz.en and wikisql the gold answers of the test split are in side files, ``woz.en_answers.json`` and
``wikisql_answers.json``, in the order of the test examples sorted by id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ray_l4.config.text import is_blank
from ray_l4.errors import DataError
from ray_l4.tasks.files import find, has_file, read_json, read_json_list
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source


def is_squad_folder(folder: Path) -> bool:
    """Return whether a custom task's folder contains converted files."""
    return folder.is_dir() and any(folder.glob("*_to_squad-*-v2.0.json*"))


def is_converted(folder: Path | None, task: str) -> bool:
    """Return whether the folder contains the training file of this task."""
    return folder is not None and has_file(folder, _file(task, "train"))


def _file(task: str, split: str) -> str:
    return f"{task}_to_squad-{split}-v2.0.json"


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """Return the examples of one converted file, in file order; with a side file, sorted by id and with its answers.

    Raises:
        DataError: a file is missing or has another layout, or the side file does not fit the examples.
    """
    rows = _questions(find_file(source), bad)
    side = _side_file(source)
    if side is None:
        return _with_unique_ids(row for _, row in rows)
    return SIDE_FILES[source.task.name](sorted(rows, key=_order), side)


def find_file(source: Source) -> Path:
    """Return the converted file of a split. Raises DataError if there is none."""
    split = "distil" if source.split == "train" and source.data.distil else source.split
    return find(source.folder, _file(source.task.name, split))


def _side_file(source: Source) -> Path | None:
    """Return the file of gold answers, or None: optional for woz.en, required to score wikisql's test split."""
    name = f"{source.task.name}_answers.json"
    if source.split != "test" or source.task.name not in SIDE_FILES:
        return None
    if source.task.name != "wikisql" and not has_file(source.folder, name):
        return None
    return find(source.folder, name)


Numbered = tuple[int | str, Row]
"""An example's id in the file (0 if missing), and the example."""


def _questions(path: Path, bad: BadRecords) -> Iterator[Numbered]:
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise DataError(f"{path}: expected a JSON object with a list under 'data' (SQuAD 2.0 layout).")
    number = 0
    for index, entry in enumerate(document["data"]):
        where = f"{path.name}, data[{index}]"
        try:
            for paragraph in entry["paragraphs"]:
                for question in paragraph["qas"]:
                    try:
                        row = _row(paragraph["context"], question, number, where)
                    except ValueError as error:  # only this question
                        bad.add(where, f"not SQuAD 2.0: {error}")
                        continue
                    yield question.get("id", 0), row
                    number += 1
        except (KeyError, TypeError, AttributeError) as error:
            bad.add(where, f"not SQuAD 2.0: {error!r}")


def _row(context: str, question: dict[str, Any], number: int, where: str) -> Row:
    references = [answer["text"] for answer in question["answers"]]
    if not references and not question.get("is_impossible", False):
        raise ValueError("no answers, and is_impossible is not true")
    if any(isinstance(text, str) and is_blank(text) for text in references):
        raise ValueError("answers contains a blank text")
    return Row(
        context=context,
        question=question["question"],
        references=references or [""],
        sample_id=str(question.get("id", number)),
        where=where,
    )


def _with_unique_ids(rows: Iterable[Row]) -> Iterator[Row]:
    """Make ids unique, as they repeat within a file: the second example with an id gets ``<id>#2``, and so on."""
    times: Counter[str] = Counter()
    for row in rows:
        name = row["sample_id"]
        times[name] += 1
        yield row if times[name] == 1 else {**row, "sample_id": f"{name}#{times[name]}"}


def _order(numbered: Numbered) -> tuple[bool, int | str]:
    """Sort key: numeric ids before text ids."""
    return isinstance(numbered[0], str), numbered[0]


def _aligned(numbered: list[Numbered], path: Path) -> Iterator[tuple[Row, Any]]:
    """Pair the examples with the entries of a side file. Raises DataError if their numbers differ."""
    side = read_json_list(path)
    if len(side) != len(numbered):
        raise DataError(
            f"{path} contains {len(side)} answers for {len(numbered)} test examples; the numbers must match."
        )
    return ((row, answer) for (_, row), answer in zip(numbered, side, strict=True))


def _with_turns(numbered: list[Numbered], path: Path) -> Iterator[Row]:
    """Join woz.en's side file, whose entries are ``[turn id, gold answer]``."""
    for index, (row, pair) in enumerate(_aligned(numbered, path)):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise DataError(f"{path}, entry {index}: expected [turn id, answer], found {pair!r}.")
        yield {**row, "sample_id": str(pair[0]), "references": [pair[1]]}


def _with_queries(numbered: list[Numbered], path: Path) -> Iterator[Row]:
    """Join wikisql's side file, whose entries have the keys ``sql``, ``header`` and ``answer``."""
    for index, (row, record) in enumerate(_aligned(numbered, path)):
        missing = [key for key in ("sql", "header", "answer") if not isinstance(record, dict) or key not in record]
        if missing:
            raise DataError(f"{path}, entry {index}: no key {missing[0]!r}; expected sql, header and answer.")
        meta = json.dumps({"sql": record["sql"], "header": record["header"]}, ensure_ascii=False)
        yield {**row, "meta": meta, "references": [record["answer"]]}


SIDE_FILES = {"woz.en": _with_turns, "wikisql": _with_queries}
"""By task, the function that joins its side file to its test examples."""
