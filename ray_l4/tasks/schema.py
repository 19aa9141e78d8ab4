"""The table of examples that every task is read into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from ray_l4.config.text import is_blank
from ray_l4.errors import DataError
from ray_l4.tasks.rows import BadRecords

EXAMPLES: pa.Schema = pa.schema(
    [
        pa.field("context", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),  # the first reference: the target in training
        pa.field("references", pa.list_(pa.string()), nullable=False),  # every accepted answer
        pa.field("task", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),  # unique within (task, split)
        pa.field("meta", pa.string(), nullable=False),  # JSON for the task's metric or of chat data, or ""
    ]
)

_PLACED: pa.Schema = EXAMPLES.append(pa.field("where", pa.string(), nullable=False))
"""Examples with their positions in the file, which only messages need."""
_BATCH = 1000
"""Examples that are Python objects at a time."""


def build_table(task: str, rows: Iterable[Mapping[str, object]], bad: BadRecords) -> pa.Table:
    """Return the ``EXAMPLES`` table of ``rows`` (mappings with the keys of ``Row``), in order, without unusable rows.

    Unusable rows are counted in ``bad``.

    Raises:
        DataError: there is no usable row, two have the same ``sample_id``, or too many are unusable.
    """
    examples = _Examples(bad.source)
    try:
        for number, row in enumerate(rows, start=1):
            where = str(row.get("where", f"record {number}"))
            if problem := _problem(row):
                bad.add(where, problem)
            else:
                examples.add(task, row, where)
    finally:
        examples.close()  # of several errors in a file, an id that occurs twice is told first
    bad.check(examples.count)
    if not examples.count:
        raise DataError(f"{bad.source} contains no usable records; expected at least one example.")
    return examples.table()


class _Examples:
    """Examples on the way into a table: Arrow data but for the last few."""

    def __init__(self, source: str) -> None:
        """Begin without examples. ``source``: the data, for messages."""
        self.count = 0
        self._source = source
        self._rows: list[tuple[object, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, task: str, row: Mapping[str, object], where: str) -> None:
        """Add a usable row. ``where``: its position in the file."""
        references = row["references"]
        assert isinstance(references, list)  # checked by _problem
        texts = (row["context"], row["question"], references[0], references)
        self._rows.append((*texts, task, str(row["sample_id"]), row.get("meta", ""), where))
        self.count += 1
        if len(self._rows) == _BATCH:
            self._convert()

    def close(self) -> None:
        """Check the ids, all examples being there. Raises DataError if one occurs twice."""
        self._convert()
        ids = pa.chunked_array([batch["sample_id"] for batch in self._batches], pa.string())
        if pc.count_distinct(ids).as_py() == self.count:
            return
        seen: dict[str, str] = {}
        for batch in self._batches:
            for sample_id, where in zip(batch["sample_id"].to_pylist(), batch["where"].to_pylist(), strict=True):
                if sample_id in seen:
                    raise DataError(
                        f"{self._source}: sample id {sample_id!r} occurs twice, at {seen[sample_id]} and at {where}; "
                        "every example needs a unique id."
                    )
                seen[sample_id] = where

    def table(self) -> pa.Table:
        """Return the examples as an ``EXAMPLES`` table."""
        return pa.Table.from_batches([batch.select(EXAMPLES.names) for batch in self._batches], EXAMPLES)

    def _convert(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, _PLACED, strict=True)]
            self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=_PLACED))
            self._rows.clear()


def _problem(row: Mapping[str, object]) -> str | None:
    """Return why a row is unusable, or None if it is usable."""
    for name in ("context", "question", "sample_id"):
        value = row.get(name)
        if not isinstance(value, str):
            return f"{name} is {_kind(value)}, expected text"
        if problem := _unencodable(name, value):
            return problem
    if is_blank(f"{row['context']}{row['question']}"):
        return "context and question are both blank"
    references = row.get("references")
    if not isinstance(references, list) or not references:
        return f"answer is {_kind(references)}, expected text or a list of texts"
    for reference in references:
        if not isinstance(reference, str):
            return f"answer contains a value that is {_kind(reference)}, expected text"
        if problem := _unencodable("answer", reference):
            return problem
    return None


def _unencodable(name: str, text: str) -> str | None:
    """Return a message if ``text`` has a lone surrogate: JSON can escape one, but no encoding can store it."""
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{name} contains a lone surrogate at character {error.start}"
    return None


def _kind(value: object) -> str:
    """Describe a value of the wrong type, for a message."""
    if value is None:
        return "missing"
    return "an empty list" if value == [] else f"of type {type(value).__name__}"
