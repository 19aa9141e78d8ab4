"""AG News, DBpedia, Yelp, Amazon and Yahoo Answers: which class a text belongs to (REFERENCE.md#text-classification).

A split is read from the original CSV where it is there, otherwise from the most complete of the published subsets
(``PARTS``; docs/DATA.md says what they hold). The draws among these overlap, so a text is taken once; no text of the
test split is trained on; and where there is nothing for a test split, some of the training texts become one.
The sets have no dev split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from ray_l4.tasks.distinct import distinct, key_of
from ray_l4.tasks.files import MissingFileError, find, find_all, holds
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source
from ray_l4.tasks.textclass.corpora import CORPORA, Corpus
from ray_l4.tasks.textclass.formats import Reader, read_original, read_tabbed, read_titled

PARTS: dict[str, tuple[tuple[tuple[Reader, str], ...], ...]] = {
    "train": (
        ((read_original, "train.csv"),),
        ((read_titled, "olora.train.json"), (read_tabbed, "lfpt5_*.train.txt"), (read_tabbed, "lfpt5_*.valid.txt")),
    ),
    "test": (
        ((read_original, "test.csv"),),
        ((read_titled, "olora.test.json"),),
        ((read_tabbed, "lfpt5_*.test.txt"),),
    ),
}
"""For each split, the files that can make it up, all of one line together; the first line that has any of them wins."""

HELD_OUT = 200
"""Texts of each class that become the test split where there is none: 1,000 of Yelp's 5,000."""


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """The examples of a split; ``sample_id`` is the row's number in the original CSV, otherwise ``<file>-<number>``.

    Raises:
        MissingFileError: there is no file that the split can be made of.
    """
    if source.split == "dev":
        raise MissingFileError(f"{source.task.name}: the text-classification sets have no dev split.")
    corpus = CORPORA[source.task.name]
    folder = _folder(source.raw / "textclass", corpus)
    texts = _texts(folder, corpus, source.split, bad)
    if source.split == "test" or _num_originals(folder) == 2:  # the originals are kept apart as they were published
        return texts
    # What is wrong with the test split is reported when it is read for itself.
    tested = _texts(folder, corpus, "test", BadRecords(str(source), max_fraction=1.0))
    return distinct(texts, (key_of(row["context"]) for row in tested))


def _folder(root: Path, corpus: Corpus) -> Path:
    """The folder with most of the original files, the one by the short name when in doubt."""
    folders = [root / name for name in corpus.folders]
    return max([folder for folder in folders if folder.is_dir()] or folders, key=_num_originals)


def _num_originals(folder: Path) -> int:
    return sum(holds(folder, f"{split}.csv") for split in PARTS)


def _texts(folder: Path, corpus: Corpus, split: str, bad: BadRecords) -> Iterator[Row]:
    choices = ([(reader, path) for reader, name in line for path in find_all(folder, name)] for line in PARTS[split])
    parts = next(filter(None, choices), None)
    if parts is None and split == "test":
        return held_out(_texts(folder, corpus, "train", bad))
    if parts is None:
        first_names = [name.replace("*", "0_42") for ((_, name), *_) in PARTS[split]]
        parts = [(read_original, find(folder, *first_names))]  # raises, with what is there
    rows = itertools.chain.from_iterable(reader(path, corpus, bad) for reader, path in parts)
    return rows if parts[0][0] is read_original else distinct(rows)


def held_out(rows: Iterable[Row]) -> Iterator[Row]:
    """``HELD_OUT`` texts of each class, or a quarter of them where that is less, in the order of the file.

    Which ones depends on the texts alone: neither on their order nor on a seed.
    """
    rows_of: dict[str, list[tuple[bytes, int, Row]]] = {}
    for number, row in enumerate(distinct(rows)):
        rows_of.setdefault(row["references"][0], []).append((key_of(row["context"]), number, row))
    taken = [place for rows in rows_of.values() for place in sorted(rows)[: min(HELD_OUT, len(rows) // 4)]]
    return (row for _, _, row in sorted(taken, key=lambda place: place[1]))
