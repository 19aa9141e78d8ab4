"""Messages for validation errors in the terms of the file: one line per problem, with origin, key and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from ray_l4.config.strict_yaml import Location
from ray_l4.config.text import index_of
from ray_l4.errors import nearest

Schema = Mapping[str, Any]
"""JSON schema, or a part of one."""

OVERRIDE = "--set"
"""Origin of a value that was set on the command line."""
_SUGGESTIONS = 3
"""Number of keys in other groups that a message names."""
_ALIKE = 0.65
"""Similarity from which a key is taken for another one, misspelt: above that of words that share only letters."""


def explain(
    error: ValidationError, model: type[BaseModel], where: Callable[[Location], str], settable: Sequence[str] = ()
) -> list[str]:
    """Return one line per problem of ``error``, which was raised when validating ``model``.

    ``where`` returns the origin of the value at a location (file and line, or ``--set``). Errors of several branches
    of one union count as one problem. ``settable``: all keys as ``--set`` spells them, to suggest where it has an
    unknown one; in a file, those of ``model`` are suggested.
    """
    root = _schema(model)
    lines: dict[Location, str] = {}
    for problem in error.errors(include_url=False):
        location, schema = _locate(root, problem["loc"], unknown=problem["type"] == "extra_forbidden")
        if location not in lines:
            key = f"{dotted(location)}: " if location else ""
            origin = where(location)
            keys = settable if origin == OVERRIDE and settable else keys_of(model)
            lines[location] = f"{origin}: {key}{_message(root, schema, location, problem, keys)}"
    return list(lines.values())


def dotted(location: Location) -> str:
    """Return a location in the spelling of ``--set``: ``('stream', 0, 'train')`` as ``stream.0.train``."""
    return ".".join(str(key) for key in location)


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


_OF_A_STAGE = "settings"
"""Key of an item of the stream that holds the settings of its stage."""


def keys_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the keys of ``model`` as ``--set`` spells them, after ``prefix``; ``0`` stands for any item of a list.

    Keys of single stages are left out: they repeat those of the experiment, which are more likely to be meant.
    """
    root = _schema(model)
    return [prefix + dotted(location) for location in _walk(root, root) if _OF_A_STAGE not in location[:-1]]


def _walk(root: Schema, schema: Schema, location: Location = ()) -> Iterator[Location]:
    for branch in _branches(root, schema):
        for name, child in branch.get("properties", {}).items():
            yield (*location, name)
            yield from _walk(root, child, (*location, name))
        if isinstance(branch.get("items"), dict):
            yield from _walk(root, branch["items"], (*location, 0))


def takes_text(model: type[BaseModel], keys: Sequence[str]) -> bool:
    """Return whether the value at ``keys``, in the spelling of ``--set``, may be any text."""
    root = _schema(model)
    schema: Schema | None = root
    for key in keys:
        schema = (
            _child(root, schema, key if (index := index_of(key)) is None else index) if schema is not None else None
        )
    return schema is not None and _any_text(root, schema)


def _locate(root: Schema, loc: Location, unknown: bool) -> tuple[Location, Schema]:
    """Return the part of ``loc`` that consists of keys and indices, and its schema.

    Pydantic appends the names of union branches. The schema of an unknown key is that of the mapping around it.
    """
    schema: Schema = root
    for depth, key in enumerate(loc):
        child = _child(root, schema, key)
        if child is None:
            return (loc[: depth + 1] if unknown else loc[:depth]), schema
        schema = child
    return loc, schema


def _child(root: Schema, schema: Schema, key: str | int) -> Schema | None:
    """Return the schema of an item or a key, or None if ``schema`` has none."""
    for branch in _branches(root, schema):
        child = branch.get("items") if isinstance(key, int) else branch.get("properties", {}).get(key)
        if child is not None:
            return child
    return None


def _branches(root: Schema, schema: Schema) -> Iterator[Schema]:
    """Yield the alternatives of a schema, with references resolved."""
    if "$ref" in schema:
        yield from _branches(root, root["$defs"][schema["$ref"].rpartition("/")[2]])
    elif "anyOf" in schema:
        for branch in schema["anyOf"]:
            yield from _branches(root, branch)
    else:
        yield schema


def _message(root: Schema, schema: Schema, location: Location, problem: Mapping[str, Any], keys: Sequence[str]) -> str:
    match problem["type"]:
        case "extra_forbidden":
            known = {key for branch in _branches(root, schema) for key in branch.get("properties", ())}
            return f"unknown key. {_suggestion(str(location[-1]), known, keys)}"
        case "missing":
            return f"missing; expected {_expected(root, schema)}"
        case "value_error":
            return str(problem["ctx"]["error"])
        case _:
            return f"expected {_expected(root, schema)}, found {_found(problem['input'])}{_hint(root, schema, problem)}"


def _suggestion(name: str, known: set[str], keys: Sequence[str]) -> str:
    """Return a hint for an unknown key: the same name in other groups, a like one in its group, or one elsewhere."""
    elsewhere = {key.rpartition(".")[2] for key in keys}
    found = _places({name}, keys) or _alike(name, known) or _places(set(_alike(name, elsewhere)), keys)
    return f"Did you mean {' or '.join(map(repr, found[:_SUGGESTIONS]))}?" if found else nearest(name, known)


def _places(names: set[str], keys: Sequence[str]) -> list[str]:
    """Return the keys that end with one of ``names``, those first that are not in a list."""
    found = [key for key in keys if key.rpartition(".")[2] in names]
    return sorted(found, key=lambda key: (".0." in key, key.count(".")))


def _alike(name: str, known: set[str]) -> list[str]:
    """Return the known key that ``name`` spells in full, in short (learning_rate, lrate, lr) or wrongly."""
    plain = name.lower().replace("-", "_")
    short = [key for key in known if len(key) > 1 < len(plain) and (_shortens(key, plain) or _shortens(plain, key))]
    return sorted(short) or get_close_matches(plain, sorted(known), n=1, cutoff=_ALIKE)


def _shortens(short: str, name: str) -> bool:
    """Return whether ``short`` is the beginning of a name, or its initials."""
    return name.startswith(short) or short == "".join(word[:1] for word in name.split("_"))


def _expected(root: Schema, schema: Schema) -> str:
    return " or ".join(_describe(branch) for branch in _branches(root, schema))


def _describe(schema: Schema) -> str:
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is not None:
        return " or ".join(repr(value) for value in values)
    match schema["type"]:
        case "integer":
            return "a whole number" + _bounds(schema)
        case "number":
            return "a number" + _bounds(schema)
        case "string":
            return "a path" if schema.get("format") == "path" else "text"
        case "boolean":
            return "true or false"
        case "array":
            return "a non-empty list" if schema.get("minItems") else "a list"
        case "object":
            known = ", ".join(schema.get("properties", ()))  # keys of any name have no such list
            return f"a group of keys ({known})" if known else "a group of keys"
        case other:
            return str(other)


def _bounds(schema: Schema) -> str:
    words = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[name]:,}".replace(",", "_") for name, word in words.items() if name in schema]
    return f" {' and '.join(limits)}" if limits else ""


def _found(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a group of keys"
        case list():
            return "a list" if value else "an empty list"
        case _:
            text = json.dumps(value, ensure_ascii=False)
            return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(root: Schema, schema: Schema, problem: Mapping[str, Any]) -> str:
    takes_number = any(branch.get("type") in ("integer", "number") for branch in _branches(root, schema))
    unquoted = isinstance(problem["input"], int | float) and not takes_number
    return "; put it in quotes to make it text" if unquoted and _any_text(root, schema) else ""


def _any_text(root: Schema, schema: Schema) -> bool:
    return any(branch.get("type") == "string" and "enum" not in branch for branch in _branches(root, schema))
