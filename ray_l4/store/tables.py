"""The reader of a run directory's Parquet files, which names a damaged file and the column that is wrong.

A column of one name has one type in all files.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.record_types import MOST

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class _Kind:
    """What the values of a column are."""

    name: str
    missing: bool = False
    """Whether single values may be null."""
    most: float | None = None
    """The largest number; the smallest is then 0."""
    finite: bool = False


_TEXT, _FIGURE = _Kind("text"), _Kind("number", missing=True)
_COUNT = _Kind("whole number", most=MOST)
_KINDS = {
    **dict.fromkeys(("sample_id", "prediction", "lane", "kind", "label", "task", "text", "answer"), _TEXT),
    **dict.fromkeys(("context", "question", "reason"), _Kind("text", missing=True)),
    **dict.fromkeys(("stage", "epoch", "student"), _COUNT),
    **dict.fromkeys(("step", "index"), _Kind("whole number", most=2**31)),
    **dict.fromkeys(("score", "start", "end"), _Kind("number", finite=True)),
    **dict.fromkeys(("forward_seconds", "wait_seconds", "backward_seconds", "idle_seconds", "bytes_sent"), _FIGURE),
    **dict.fromkeys(("bytes_received", "loss", "lr", "kd_qa", "kd_lm", "nll_qa", "nll_lm", "penalty"), _FIGURE),
    "references": _Kind("list of texts"),
    "valid": _Kind("true or false"),
}
"""Column -> what its values are; any other column may be of any type."""


COLUMNS = b"ray_l4.columns"
"""Key of a file's metadata for the checksum of the names of its columns, which those of its pages do not cover."""


def names_checksum(schema: pa.Schema) -> bytes:
    """Return a checksum of the names of the columns."""
    return hashlib.sha256(json.dumps(schema.names).encode()).hexdigest().encode()


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] | None = ()) -> pa.Table | None:
    """Return columns of a Parquet file, those in ``optional`` only where it has them; None if there is no such file.

    ``optional`` = None: all other columns that it has. Raises RunDirectoryError if the file cannot be read, lacks one
    of ``columns``, or has one with values of another type. Values of ``optional`` columns may be missing.
    """
    if not path.exists() and not path.is_symlink():
        return None
    import pyarrow as pa  # slow to import, and most commands read no table
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            present = schema.names
            if (schema.metadata or {}).get(COLUMNS, names_checksum(schema)) != names_checksum(schema):
                raise DamagedError(f"{path}: damaged: the names of its columns are not those that were written")
            missing = [name for name in columns if name not in present]
            if missing:
                raise RunDirectoryError(f"{path}: has no column {missing[0]!r}; its columns are {', '.join(present)}")
            twice = next((name for name in present if present.count(name) > 1), None)
            if twice is not None:
                raise DamagedError(f"{path}: has column {twice!r} twice; the run is damaged")
            others = present if optional is None else [name for name in optional if name in present]
            table = file.read(list(dict.fromkeys([*columns, *others])))
    except (OSError, ValueError, pa.ArrowException) as error:
        # Errors of the system have a number; Arrow raises OSError without one for damage, too.
        unreadable = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EISDIR, errno.ELOOP)
        if unreadable:  # the storage may answer again
            raise RunDirectoryError(f"{path}: cannot be read ({error})") from error
        raise DamagedError(f"{path}: cannot be read as Parquet ({error}); the run is damaged") from error
    for name in table.column_names:
        kind = _KINDS.get(name)
        wrong = None if kind is None else _wrong(table.column(name), kind, kind.missing or name not in columns)
        if kind is not None and wrong is not None:
            raise DamagedError(
                f"{path}: column {name!r} holds {wrong}, expected {kind.name}s; the run is damaged. Restore "
                "the file from a copy."
            )
    return table


def _wrong(column: pa.ChunkedArray, kind: _Kind, missing: bool) -> str | None:
    """Return what a column holds instead of values of its kind, some of which may be ``missing``; None if nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types = pa.types
    fits = {
        "text": lambda of: types.is_string(of) or types.is_large_string(of),
        "number": lambda of: types.is_floating(of) or types.is_integer(of),
        "whole number": types.is_integer,
        "true or false": types.is_boolean,
        "list of texts": lambda of: (types.is_list(of) or types.is_large_list(of)) and types.is_string(of.value_type),
    }[kind.name]
    if not len(column) or (missing and column.null_count == len(column)):
        return None  # the type of a column without values is nobody's choice
    if not fits(column.type):
        return f"values of type {column.type}"
    if types.is_list(column.type) and pc.list_flatten(column).null_count:
        return "missing texts"
    if column.null_count and not missing:
        return "missing values"
    if kind.finite and not pc.all(pc.is_finite(column)).as_py():
        return "numbers that are not finite"
    if kind.most is not None:
        ends = pc.min_max(column).as_py()
        if ends["min"] < 0 or ends["max"] > kind.most:
            return f"numbers from {ends['min']} to {ends['max']}"
    return None
