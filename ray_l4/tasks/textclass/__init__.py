"""Reader of AG News, DBpedia, Yelp, Amazon and Yahoo Answers: a text and its class.

REFERENCE.md#text-classification. A split is read from the original CSV if it exists, otherwise from the most complete
of the published subsets (``FILES``; docs/DATA.md lists their contents). The subsets overlap, so duplicate texts are
read once, and texts of the test split are removed from the training split. If there are no files for a test split,
some of the training texts are held out for it. The sets have no dev split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from ray_l4.tasks.distinct import distinct, key_of
from ray_l4.tasks.files import MissingFileError, find, find_all, has_file
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source
from ray_l4.tasks.textclass.corpora import CORPORA, Corpus
from ray_l4.tasks.textclass.formats import Reader, read_original, read_tabbed, read_titled

FILES: dict[str, tuple[tuple[tuple[Reader, str], ...], ...]] = {
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
"""By split, groups of (reader, file name or pattern), most complete first.

The split consists of all files of the first group of which any file exists.
"""

HELD_OUT = 200
"""Number of texts per class held out as the test split where there is none: 1,000 of Yelp's 5,000."""


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """Return the examples of a split; ``sample_id`` is the row number in the original CSV or ``<file>-<number>``.

    Raises:
        MissingFileError: there are no files for the split.
    """
    if source.split == "dev":
        raise MissingFileError(f"{source.task.name}: the text-classification sets have no dev split.")
    corpus = CORPORA[source.task.name]
    folder = _folder(source.raw / "textclass", corpus)
    texts = _texts(folder, corpus, source.split, bad)
    if source.split == "test" or _num_originals(folder) == 2:  # the original splits are used as published
        return texts
    # Bad records of the test split are reported when that split itself is read.
    tested = _texts(folder, corpus, "test", BadRecords(str(source), max_fraction=1.0))
    return distinct(texts, (key_of(row["context"]) for row in tested))


def _folder(root: Path, corpus: Corpus) -> Path:
    """Return the folder with the most original files; on a tie, the one with the short name."""
    folders = [root / name for name in corpus.folders]
    return max([folder for folder in folders if folder.is_dir()] or folders, key=_num_originals)


def _num_originals(folder: Path) -> int:
    return sum(has_file(folder, f"{split}.csv") for split in FILES)


def _texts(folder: Path, corpus: Corpus, split: str, bad: BadRecords) -> Iterator[Row]:
    choices = ([(reader, path) for reader, name in line for path in find_all(folder, name)] for line in FILES[split])
    parts = next(filter(None, choices), None)
    if parts is None and split == "test":
        return held_out(_texts(folder, corpus, "train", bad))
    if parts is None:
        first_names = [name.replace("*", "0_42") for ((_, name), *_) in FILES[split]]
        parts = [(read_original, find(folder, *first_names))]  # raises an error that names the existing files
    rows = itertools.chain.from_iterable(reader(path, corpus, bad) for reader, path in parts)
    return rows if parts[0][0] is read_original else distinct(rows)


def held_out(rows: Iterable[Row]) -> Iterator[Row]:
    """Return ``HELD_OUT`` texts of each class, or a quarter of the class if that is less, in file order.

    The choice depends on the texts alone, not on their order or a seed.
    """
    rows_of: dict[str, list[tuple[bytes, int, Row]]] = {}
    for number, row in enumerate(distinct(rows)):
        rows_of.setdefault(row["references"][0], []).append((key_of(row["context"]), number, row))
    chosen = [item for rows in rows_of.values() for item in sorted(rows)[: min(HELD_OUT, len(rows) // 4)]]
    return (row for _, _, row in sorted(chosen, key=lambda item: item[1]))
