"""Damage of all kinds: to values of JSON and YAML, to tables, to bytes and to what stands in a folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

Draw = Callable[..., Any]


class Instead(Enum):
    """What stands in the place of a file."""

    NOTHING = "nothing"
    FOLDER = "a folder"
    LOOP = "a link to itself"
    DANGLING = "a link to nothing"


Content = bytes | Instead
"""Contents of a file, or what stands in its place."""

_HERE = "@the damaged value@"

VALUES = (
    *("null", "true", "false", "0", "1", "-1", "2", "3", "7", "1.5", "-0.0", "1e308", "1e999999", "NaN", "Infinity"),
    *("9223372036854775807", "18446744073709551616", "1" * 30, "-" + "9" * 400, "1" * 4301, "9" * 20000, "0.1e-400"),
    *(
        '""',
        '"x"',
        '" "',
        '"0"',
        '"1e3"',
        '"nan"',
        '"null"',
        '"../.."',
        '"/"',
        '"/dev/null"',
        '"~"',
        '"~nobody/x"',
        '"-"',
    ),
    *('"\\u0000"', '"\\ud800"', '"\\u202e"', '"\\u001b[31m"', '"[red]x[/red]"', '"[/]"', '"{}%s{0}"', '"a\\nb"'),
    '"' + "long " * 20000 + '"',
    '"' + "x" * 300 + '"',
    *("[]", "{}", "[null]", "[[]]", "[{}]", '[""]', "[1]", "[1, 2]", "[0, 1, 2]", '{"": {}}', '{"0": 1}', '{"x": [1]}'),
    *("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 100000, "[" * 80 + "1" + "]" * 80),
)
"""Values as JSON text: of every type, out of every range, and some that no parser accepts."""

NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "5",
    "17",
    "64",
    "0.5",
    "1000",
    "100000",
    "20000000",
    "3000000000",
    "9223372036854775807",
)
"""Numbers that settings may accept, some of them far larger than any machine."""

texts = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=st.characters(categories=("Cs", "Cc", "Cf", "Zl", "Zs", "Mn", "Co")), max_size=20),
    st.sampled_from(["", " ", "\ud800", "\udcff", "\x00", "\n" * 50, "a" * 100_000, "字" * 20_000, "\u0301" * 2000]),
    st.sampled_from(
        ["__ans__", "__gen__", "<|endoftext|>", "[red]x", "[/]", "\x1b]0;x\x07", "%s%n", "{0}", "-", "--help"]
    ),
)
"""Texts that a person, or a broken program, may give."""


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value in a tree, the root included."""
    found = [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        found += _paths(child, (*path, key))
    return found


def _put(tree: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> None:
    """Call ``change`` with the container of the value at ``path`` and its key."""
    for key in path[:-1]:
        tree = tree[key]
    change(tree, path[-1])


@st.composite
def damaged_tree(draw: Draw, tree: Any, dump: Callable[[Any], str] = json.dumps, keys: tuple[str, ...] = ()) -> str:
    """Draw the text of a tree in which a value is replaced, removed, renamed or added. ``keys``: names to add."""
    tree = json.loads(json.dumps(tree))
    put: list[str] = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        places = _paths(tree)
        path = draw(st.sampled_from(places))
        if not path:
            if draw(st.integers(0, 5)):
                continue
            return draw(st.sampled_from(VALUES))
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add", "swap"])):
            case "replace":
                put.append(draw(st.sampled_from(draw(st.sampled_from([VALUES, VALUES, NUMBERS])))))
                marker = f"{_HERE}{len(put) - 1}@"
                _put(tree, path, partial(_set, marker))
            case "remove":
                _put(tree, path, _remove)
            case "rename":
                name = draw(st.sampled_from([*keys, "x", "", "0", "-1", "Name", "properties", "items"]))
                _put(tree, path, partial(_rename, name))
            case "add":
                name, value = draw(st.sampled_from([*keys, "x"])), draw(st.sampled_from([None, 1, "x", {}, [], [1]]))
                _put(tree, path, partial(_add, name, value))
            case "swap":
                other = draw(st.sampled_from(places))
                _put(tree, path, partial(_set, _at(tree, other)))
    text = dump(json.loads(json.dumps(tree)))  # a copy: what was swapped may stand in it twice
    for number, value in enumerate(put):
        for quoted in (f'"{_HERE}{number}@"', f"'{_HERE}{number}@'", f"{_HERE}{number}@"):
            text = text.replace(quoted, value)
    return text


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    try:
        for key in path:
            tree = tree[key]
        return json.loads(json.dumps(tree))
    except (KeyError, IndexError, TypeError):
        return None


def _set(value: Any, parent: Any, key: Any) -> None:
    parent[key] = value


def _remove(parent: Any, key: Any) -> None:
    parent.pop(key)


def _rename(name: str, parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[name] = parent.pop(key)


def _add(name: str, value: Any, parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[name] = value
    else:
        parent.append(value)


@st.composite
def damaged_bytes(draw: Draw, data: bytes) -> bytes:
    """Draw bytes that differ from ``data`` as those of a bad disk, a wrong program or another file do."""
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    match draw(st.sampled_from(["cut", "empty", "flip", "flips", "insert", "double", "zeros", "encode", "other"])):
        case "cut":
            return data[:at]
        case "empty":
            return b""
        case "flip":
            return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :] if data else b"\0"
        case "flips":
            changed = bytearray(data or b"\0")
            for place in draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=20)):
                changed[place] = draw(st.integers(0, 255))
            return bytes(changed)
        case "insert":
            return data[:at] + draw(st.binary(min_size=1, max_size=30)) + data[at:]
        case "double":
            return data + data
        case "zeros":
            return data[:at] + bytes(len(data) - at)
        case "encode":
            text = data.decode("utf-8", errors="replace")
            return text.encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32", "cp037"])), errors="replace")
        case _:
            return draw(
                st.sampled_from([b"{}", b"[]", b"null", b"PAR1", b"PAR1PAR1", b"\x80\x04N.", b"PK\x03\x04", b"\n"])
            )


@st.composite
def damaged_json(draw: Draw, data: bytes) -> bytes:
    """Draw the bytes of a JSON file with a damaged value; of one that is damaged already, any bytes."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return draw(damaged_bytes(data))
    return draw(damaged_tree(tree)).encode("utf-8", errors="surrogatepass")


_COLUMNS: tuple[Callable[[int], pa.Array], ...] = (
    lambda rows: pa.nulls(rows),
    lambda rows: pa.array(["x"] * rows),
    lambda rows: pa.array([None] * rows, pa.string()),
    lambda rows: pa.array([None] * rows, pa.float64()),
    lambda rows: pa.array([None] * rows, pa.int32()),
    lambda rows: pa.array([-1] * rows, pa.int32()),
    lambda rows: pa.array([0] * rows, pa.int64()),
    lambda rows: pa.array([2**62] * rows, pa.int64()),
    lambda rows: pa.array([float("nan")] * rows),
    lambda rows: pa.array([float("inf")] * rows),
    lambda rows: pa.array([-1e300] * rows),
    lambda rows: pa.array([True] * rows),
    lambda rows: pa.array([b"\xff"] * rows),
    lambda rows: pa.array([[]] * rows, pa.list_(pa.int32())),
    lambda rows: pa.array([[None]] * rows, pa.list_(pa.string())),
    lambda rows: pa.array([{"a": 1}] * rows),
    lambda rows: pa.array(["x"] * rows).dictionary_encode(),
    lambda rows: pa.array([0] * rows, pa.timestamp("us")),
    lambda rows: pa.array([[["x"]]] * rows),
)
"""Columns of every type and of values that do not fit."""


@st.composite
def damaged_table(draw: Draw, data: bytes) -> bytes:
    """Draw the bytes of a Parquet file in which a column has another type, other values or another name, or is gone.

    Of a file that is damaged already, draw any bytes.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
    except (OSError, ValueError, pa.ArrowException):
        return draw(damaged_bytes(data))
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        if not table.num_columns:
            break
        at = draw(st.integers(0, table.num_columns - 1))
        match draw(st.sampled_from(["type", "type", "type", "rename", "remove", "rows", "repeat", "null"])):
            case "type":
                column = draw(st.sampled_from(_COLUMNS))(table.num_rows)
                table = table.set_column(at, table.column_names[at], column)
            case "rename":
                names = list(table.column_names)
                names[at] = draw(st.sampled_from(["", "x", names[0], names[-1]]))
                table = table.rename_columns(names)
            case "remove":
                table = table.remove_column(at)
            case "rows":
                table = table.slice(0, draw(st.sampled_from([0, 1, max(table.num_rows - 1, 0)])))
            case "repeat":
                table = pa.concat_tables([table, table])
            case "null":
                values = table.column(at).to_pylist()
                table = table.set_column(
                    at, table.column_names[at], pa.array([None, *values[1:]][: len(values)], table.schema.types[at])
                )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def damaged_file(name: str, data: bytes) -> st.SearchStrategy[Content]:
    """Return a strategy for the damage to a file that fits its name."""
    general: list[st.SearchStrategy[Content]] = [damaged_bytes(data), st.sampled_from(list(Instead))]
    if name.endswith(".parquet"):
        return st.one_of(damaged_table(data), damaged_table(data), *general)
    if name.endswith(".json"):
        return st.one_of(damaged_json(data), damaged_json(data), damaged_json(data), *general)
    return st.one_of(*general)
