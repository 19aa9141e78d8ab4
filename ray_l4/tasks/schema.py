"""The table of examples that every task is read into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

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


def build_table(task: str, rows: Iterable[Mapping[str, object]], bad: BadRecords) -> pa.Table:
    """Return the ``EXAMPLES`` table of ``rows`` (mappings with the keys of ``Row``), in order, without unusable rows.

    Unusable rows are counted in ``bad``.

    Raises:
        DataError: there is no usable row, two have the same ``sample_id``, or too many are unusable.
    """
    columns: dict[str, list[object]] = {name: [] for name in EXAMPLES.names}
    seen: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        where = str(row.get("where", f"record {number}"))
        if problem := _problem(row):
            bad.add(where, problem)
            continue
        sample_id = str(row["sample_id"])
        if sample_id in seen:
            raise DataError(
                f"{bad.source}: sample id {sample_id!r} occurs twice, at {seen[sample_id]} and at {where}; "
                "every example needs a unique id."
            )
        seen[sample_id] = where
        references = row["references"]
        assert isinstance(references, list)  # checked by _problem
        values = (row["context"], row["question"], references[0], references, task, sample_id, row.get("meta", ""))
        for name, value in zip(EXAMPLES.names, values, strict=True):
            columns[name].append(value)
    bad.check(len(seen))
    if not seen:
        raise DataError(f"{bad.source} contains no usable records; expected at least one example.")
    return pa.table(columns, schema=EXAMPLES)


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
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{name} contains a lone surrogate at character {error.start}"
    return None


def _kind(value: object) -> str:
    """Describe a value of the wrong type, for a message."""
    if value is None:
        return "missing"
    return "an empty list" if value == [] else f"of type {type(value).__name__}"
