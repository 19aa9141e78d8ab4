"""The references' converted files, ``<task>_to_squad-<split>-v2.0.json`` (REFERENCE.md#data-schema).

For woz.en and wikisql the gold answers of the test split stand in side files, ``woz.en_answers.json`` and
``wikisql_answers.json``, aligned with the test examples after these are sorted by their id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ray_l4.errors import DataError
from ray_l4.tasks.files import find, holds, read_json, read_json_list
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source


def is_squad_folder(folder: Path) -> bool:
    """Whether a folder of one's own data holds converted files."""
    return folder.is_dir() and any(folder.glob("*_to_squad-*-v2.0.json*"))


def is_converted(folder: Path | None, task: str) -> bool:
    """Whether the folder holds the training file of this task."""
    return folder is not None and holds(folder, _file(task, "train"))


def _file(task: str, split: str) -> str:
    return f"{task}_to_squad-{split}-v2.0.json"


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """The examples of one converted file, in file order; with a side file, sorted by id and with its gold answers."""
    split = "distil" if source.split == "train" and source.data.distil else source.split
    path = find(source.folder, _file(source.task.name, split))
    rows = _questions(path, bad)
    side = _side_file(source)
    if side is None:
        return _with_unique_ids(row for _, row in rows)
    return SIDE_FILES[source.task.name](sorted(rows, key=_order), side)


def _side_file(source: Source) -> Path | None:
    """The file of gold answers: optional for woz.en, but wikisql's test split cannot be scored without."""
    name = f"{source.task.name}_answers.json"
    if source.split != "test" or source.task.name not in SIDE_FILES:
        return None
    if source.task.name != "wikisql" and not holds(source.folder, name):
        return None
    return find(source.folder, name)


Numbered = tuple[int | str, Row]
"""An example and its id in the file; a missing id counts as 0."""


def _questions(path: Path, bad: BadRecords) -> Iterator[Numbered]:
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise DataError(f"{path}: expected an object with a list under 'data' (SQuAD 2.0 layout).")
    number = 0
    for place, entry in enumerate(document["data"]):
        where = f"{path.name}, data[{place}]"
        try:
            for paragraph in entry["paragraphs"]:
                for question in paragraph["qas"]:
                    yield question.get("id", 0), _row(paragraph["context"], question, number, where)
                    number += 1
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            bad.add(where, f"not SQuAD 2.0: {error!r}")


def _row(context: str, question: dict[str, Any], number: int, where: str) -> Row:
    references = [answer["text"] for answer in question["answers"]]
    if not references and not question.get("is_impossible", False):
        raise ValueError("no answers, and is_impossible is not true")
    return Row(
        context=context,
        question=question["question"],
        references=references or [""],
        sample_id=str(question.get("id", number)),
        where=where,
    )


def _with_unique_ids(rows: Iterable[Row]) -> Iterator[Row]:
    """The references' ids repeat within a file; the second example with an id gets ``<id>#2``, and so on."""
    times: Counter[str] = Counter()
    for row in rows:
        name = row["sample_id"]
        times[name] += 1
        yield row if times[name] == 1 else {**row, "sample_id": f"{name}#{times[name]}"}


def _order(numbered: Numbered) -> tuple[bool, int | str]:
    """Numbers before texts, each in their own order; the sort is stable."""
    return isinstance(numbered[0], str), numbered[0]


def _aligned(numbered: list[Numbered], path: Path) -> Iterator[tuple[Row, Any]]:
    side = read_json_list(path)
    if len(side) != len(numbered):
        raise DataError(f"{path} holds {len(side)} answers for {len(numbered)} test examples; the two must match.")
    return ((row, answer) for (_, row), answer in zip(numbered, side, strict=True))


def _with_turns(numbered: list[Numbered], path: Path) -> Iterator[Row]:
    """Pairs (dialogue-turn id, gold answer)."""
    for place, (row, pair) in enumerate(_aligned(numbered, path)):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise DataError(f"{path}, entry {place}: expected [turn id, answer], found {pair!r}.")
        yield {**row, "sample_id": str(pair[0]), "references": [pair[1]]}


def _with_queries(numbered: list[Numbered], path: Path) -> Iterator[Row]:
    """Objects with ``sql``, ``header`` and ``answer``."""
    for place, (row, record) in enumerate(_aligned(numbered, path)):
        missing = [key for key in ("sql", "header", "answer") if not isinstance(record, dict) or key not in record]
        if missing:
            raise DataError(f"{path}, entry {place}: no key {missing[0]!r}; expected sql, header and answer.")
        meta = json.dumps({"sql": record["sql"], "header": record["header"]}, ensure_ascii=False)
        yield {**row, "meta": meta, "references": [record["answer"]]}


SIDE_FILES = {"woz.en": _with_turns, "wikisql": _with_queries}
"""How a task's side file joins its test examples."""
