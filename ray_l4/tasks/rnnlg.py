"""Reader of RNNLG: a dialogue act and a sentence, both verbatim, in four domains (REFERENCE.md#rnnlg)."""

from __future__ import annotations

from collections.abc import Iterator

from ray_l4.tasks.files import find, read_json_list, read_text
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source

QUESTION = "what is the natural language form ?"

FOLDERS = {"rnnlg.rest": "restaurant", "rnnlg.hotel": "hotel", "rnnlg.tv": "tv", "rnnlg.laptop": "laptop"}
FILES = {"train": "train.json", "dev": "valid.json", "test": "test.json"}


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """Yield two examples per record for train, one per realisation; for dev and test one, with both as references.

    ``sample_id`` is the record's number, from 0; for train it ends in ``-0`` or ``-1``.
    """
    path = find(source.raw / "rnnlg" / FOLDERS[source.task.name], FILES[source.split])
    for number, record in enumerate(read_json_list(path, _without_banner(read_text(path)))):
        where = f"{path.name}, record {number}"
        if not (isinstance(record, list) and len(record) == 3 and all(isinstance(item, str) for item in record)):
            bad.add(where, "expected [dialogue act, first sentence, second sentence]")
            continue
        act, *sentences = record
        if source.split == "train":
            for index, sentence in enumerate(sentences):
                yield Row(
                    context=act,
                    question=QUESTION,
                    references=[sentence],
                    sample_id=f"{number}-{index}",
                    where=where,
                )
        else:
            yield Row(context=act, question=QUESTION, references=sentences, sample_id=str(number), where=where)


def _without_banner(text: str) -> str:
    """Blank out the ``#`` lines of the copyright notice at the top, so that line numbers in errors stay correct."""
    lines = text.split("\n")
    banner = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join([""] * banner + lines[banner:])
