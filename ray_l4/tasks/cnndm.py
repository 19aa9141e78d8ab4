"""Reader of CNN/DailyMail: an article and its highlights (REFERENCE.md#cnndm).

All text is lower-cased and in Unicode normal form NFKC. The raw folder ``cnndm/`` has one of two layouts, tried in
this order:

1. the originals: ``cnn/stories/*.story`` and ``dailymail/stories/*.story``, with the lists of stories that make up each
   split in ``url_lists/`` (``cnn_wayback_training_urls.txt`` and so on);
2. published subsets of version 3.0.0, in which the lines of a story are joined (``SUBSETS``; docs/DATA.md). Duplicate
   articles are read once, and articles of the test split are removed from the training split.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from ray_l4.errors import DataError
from ray_l4.tasks.delimited import read_csv
from ray_l4.tasks.distinct import distinct, key_of
from ray_l4.tasks.files import MissingFileError, find, find_all, read_json, require_columns
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source
from ray_l4.tasks.text_lines import read_lines

log = logging.getLogger(__name__)

QUESTION = "what is the summary?"

PUBLISHERS = ("cnn", "dailymail")
URL_LISTS = {"train": "training", "dev": "validation", "test": "test"}

END_OF_SENTENCE = (".", "!", "?", "'", "`", '"', "\u2019", "\u201d", ")")


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """Return one example per article; ``sample_id`` is the name of its story, or ``<file>-<number>`` if unknown.

    Raises:
        MissingFileError: there are no files for the split.
    """
    folder = source.raw / "cnndm"
    if any((folder / publisher / "stories").is_dir() for publisher in PUBLISHERS):
        return _originals(folder, source, bad)
    articles = _subsets(folder, source.split, bad)
    if source.split == "test":
        return distinct(articles, key=article_key)
    # Bad records of the test split are reported when that split itself is read.
    tested = _subsets(folder, "test", BadRecords(str(source), max_fraction=1.0))
    return distinct(articles, (article_key(row["context"]) for row in tested), article_key)


_AGENCY = re.compile(r"\(\s*cnn\s*\)", re.IGNORECASE)


def article_key(article: str) -> bytes:
    """Return ``key_of`` the article without the agency's mark "(CNN)", which some files have removed."""
    return key_of(_AGENCY.sub("", article))


def _originals(folder: Path, source: Source, bad: BadRecords) -> Iterator[Row]:
    """Yield the stories on the split's lists, CNN first.

    Missing stories are skipped, as in the reference implementations, and their number is logged.
    """
    missing = 0
    for publisher in PUBLISHERS:
        urls = find(folder / "url_lists", f"{publisher}_wayback_{URL_LISTS[source.split]}_urls.txt")
        for _, url in read_lines(urls):
            name = hashlib.sha1(url.strip().encode("utf-8")).hexdigest()
            path = folder / publisher / "stories" / f"{name}.story"
            try:
                lines = [line.strip() for _, line in read_lines(path)]
            except MissingFileError:
                missing += 1
                continue
            except DataError as error:
                bad.add(path.name, str(error))
                continue
            article, highlights = split_story(lines)
            yield _row(article, highlights, name, path.name)
    if missing:
        log.warning("%s: %d stories on the lists are not in %s; they are left out.", source, missing, folder)


def split_story(lines: list[str]) -> tuple[str, str]:
    """Return the article and the highlights of a story from its stripped, non-empty lines.

    REFERENCE.md#cnndm, steps 2 to 4.
    """
    article: list[str] = []
    highlights: list[str] = []
    into = article
    for line in lines:
        if line.startswith("@highlight"):
            into = highlights
        else:
            into.append(line if line.endswith(END_OF_SENTENCE) or "@highlight" in line else f"{line}.")
    return " ".join(article), " ".join(highlights)


Pair = tuple[str, str, str, str]
"""Article, highlights, sample id, and position in the file for messages."""


def _from_csv(path: Path, bad: BadRecords) -> Iterator[Pair]:
    names, records = read_csv(path)
    summary = "highlights" if "highlights" in names else "reference_summary"
    require_columns(path, names, "article", summary)
    for number, (line, record) in enumerate(records):
        article, highlights, where = record["article"], record[summary], f"{path.name}, line {line}"
        if article and highlights:
            yield article, highlights, record.get("id") or _id(path, number), where
        else:
            bad.add(where, f"article or {summary} is empty")


def _from_lines(path: Path, bad: BadRecords) -> Iterator[Pair]:
    for number, (line, text) in enumerate(read_lines(path)):
        article, tab, highlights = text.rpartition("\t")
        if tab:
            yield article, highlights, _id(path, number), f"{path.name}, line {line}"
        else:
            bad.add(f"{path.name}, line {line}", "expected an article, a tab and its highlights")


def _from_json(path: Path, bad: BadRecords) -> Iterator[Pair]:
    """Read SumCoT's file, without its rewritten and generated summaries."""
    document = read_json(path)
    records = document.get("cnndm") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a JSON object with a list under 'cnndm'.")
    for number, record in enumerate(records):
        where = f"{path.name}, record {number}"
        try:
            article, highlights = record["src"].strip(), record["original_summary"].replace(".. ", ". ")
        except (KeyError, TypeError, AttributeError) as error:
            bad.add(where, f"expected an object with src and original_summary: {error!r}")
            continue
        yield article, highlights, _id(path, number), where


def _id(path: Path, number: int) -> str:
    return f"{path.name.partition('.csv')[0].partition('.txt')[0].partition('.json')[0]}-{number}"


SUBSETS: dict[str, dict[str, Callable[[Path, BadRecords], Iterator[Pair]]]] = {
    "train": {"train_*.csv": _from_csv, "lfpt5_*.train.txt": _from_lines},
    "dev": {"validation_*.csv": _from_csv, "lfpt5_*.valid.txt": _from_lines},
    "test": {"test_*.csv": _from_csv, "test_sumcot200.json": _from_json},
}
"""The files that together make up a split (by glob pattern) and how each is read.

Each file was drawn from the same split of the whole data set.
"""


def _subsets(folder: Path, split: str, bad: BadRecords) -> Iterator[Row]:
    readers = SUBSETS[split]
    files = [(reader, path) for pattern, reader in readers.items() for path in find_all(folder, pattern)]
    if not files:
        raise MissingFileError(
            f"{folder}: found neither the originals (cnn/stories, dailymail/stories and url_lists) nor any of "
            f"{', '.join(readers)} (plain, .gz or .bz2). docs/DATA.md says where to get them."
        )
    pairs = itertools.chain.from_iterable(reader(path, bad) for reader, path in files)
    return (_row(with_close_dots(article), with_close_dots(summary), *rest) for article, summary, *rest in pairs)


_FAR_DOT = re.compile(rf"(?<=[^\s{re.escape(''.join(END_OF_SENTENCE))}]) \.(?=\s|$)")


def with_close_dots(text: str) -> str:
    """Return a text of version 3.0.0 in the form of the reference implementations.

    Version 3.0.0 puts a space before the full stop that it adds to a line; the reference implementations do not.
    """
    return " ".join(_FAR_DOT.sub(".", text).splitlines())


def _row(article: str, highlights: str, sample_id: str, where: str) -> Row:
    return Row(
        context=unicodedata.normalize("NFKC", article).lower(),
        question=QUESTION,
        references=[unicodedata.normalize("NFKC", highlights).lower()],
        sample_id=sample_id,
        where=where,
    )
