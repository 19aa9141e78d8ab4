"""Reader of WikiSQL: a question about a table and its query (REFERENCE.md#wikisql). All text is lower-cased.

The raw folder ``wikisql/`` has one of three layouts; the most complete one present is read:

1. the original release: ``<split>.jsonl`` and ``<split>.tables.jsonl``, with every table's full header (``headers``);
2. dev and test without tables: ``<split>.jsonl``, and the same queries with column names in
   ``validation.human_readable.csv`` or ``test.human_readable.csv``. A table's header then consists of the columns that
   any query of the split names, in their original order (``headers``);
3. train without ``train.jsonl``: rebuilt from ``text2sql-data.wikisql.json`` (``text2sql``).

If a header is incomplete, the column numbers of ``sql`` in ``meta`` refer to the header that ``meta`` and the context
contain, so that the logical-form metric sees a consistent table.
"""

from __future__ import annotations

from collections.abc import Iterator

from ray_l4.tasks.files import find
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.source import Source
from ray_l4.tasks.wikisql.headers import READABLE, queries_with_names, queries_with_tables
from ray_l4.tasks.wikisql.query import row_of
from ray_l4.tasks.wikisql.text2sql import GROUPS, train_queries


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """Return one example per question, in file order; ``sample_id`` is its number in the split, from 0.

    ``meta`` is JSON for the metric, with ``sql`` (``sel``, ``agg``, ``conds``) and the lower-cased ``header``.

    Raises:
        DataError: a file is missing or unreadable.
    """
    folder, split = source.raw / "wikisql", source.split
    tables, substitute = f"{split}.tables.jsonl", GROUPS if split == "train" else READABLE[split]
    if find(folder, tables, substitute).name.startswith(tables):
        queries = queries_with_tables(folder, split, bad)
    elif split == "train":
        queries = train_queries(folder, bad)
    else:
        queries = queries_with_names(folder, split, bad)
    return map(row_of, queries)
