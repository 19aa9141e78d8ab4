"""Reader of E2E NLG: a meaning representation and a sentence, both verbatim (REFERENCE.md#e2e)."""

from __future__ import annotations

from collections.abc import Iterator

from ray_l4.tasks.delimited import read_csv
from ray_l4.tasks.files import find, require_columns
from ray_l4.tasks.rnnlg import QUESTION
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source

FILES = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """Yield one example per (representation, reference) row, in file order; ``sample_id`` is the row number, from 0."""
    path = find(source.raw / "e2e", FILES[source.split])
    names, records = read_csv(path)
    require_columns(path, names, "mr", "ref")
    for number, (line, record) in enumerate(records):
        meaning, sentence = record["mr"], record["ref"]
        if not meaning or not sentence:
            bad.add(f"{path.name}, line {line}", "mr or ref is empty")
            continue
        yield Row(context=meaning, question=QUESTION, references=[sentence], sample_id=str(number))
