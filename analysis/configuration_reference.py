"""Generator of docs/CONFIGURATION.md, the reference of all settings, from the models that validate them.

::

    python -m analysis.configuration_reference > docs/CONFIGURATION.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.protocol import SweepConfig

Schema = Mapping[str, Any]
"""A JSON schema, or a part of one."""

HEADER = """\
# Configuration

<!-- Written by python -m analysis.configuration_reference > docs/CONFIGURATION.md: change the docstrings, not this. -->

Two YAML files describe a run. Neither refers to the other: the *experiment* (tasks, method and training settings, in
`launch/experiments/`) and the *cluster profile* (devices, processes and timeouts, in `cluster_configs/`). This page
lists every key in the spelling of `--set`; `N` is the index of an item of a list, counted from 0. A key with the
default – is optional, and its meaning says what happens if it is not given.

```bash
ray-l4 run EXPERIMENT.yaml --cluster PROFILE.yaml --set training.epochs=3 --set stream.0.train=100 \\
    --set cluster.evaluators.count=2
```

`--set` takes a YAML value and can be repeated; keys of the profile begin with `cluster.`. `--dry-run` prints the
complete configuration and starts nothing. Unknown keys, duplicate keys and values of the wrong type are errors that
name the file and line. A run directory records the complete configuration, defaults included, in `config.yaml` and
`cluster.yaml`. A *protocol* is an experiment file with one more key, `sweep`, for `ray-l4 sweep`.
"""

PARTS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The experiment file", "", ExperimentConfig),
    ("The cluster profile", "cluster.", ClusterConfig),
    ("The sweep of a protocol", "sweep.", SweepConfig),
)
"""Title, prefix of the keys in ``--set``, and the model that validates them."""

TYPES = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
REFERENCE = re.compile(r" \(REFERENCE\.md[^)]*\)")


def render() -> str:
    """Return the page as Markdown."""
    pages = [HEADER]
    for title, prefix, model in PARTS:
        schema = model.model_json_schema()
        pages += _sections(schema, schema, prefix, f"## {title}")
    return "\n".join(pages)


def _sections(root: Schema, schema: Schema, prefix: str, heading: str) -> Iterator[str]:
    """Yield a table of the keys of a group, then those of the groups within it. ``prefix`` precedes every key."""
    required = schema.get("required", ())
    rows, groups = [], []
    for name, field in schema["properties"].items():
        group, inner_prefix = _group(root, field, f"{prefix}{name}")
        if group is not None:
            groups.append((group, inner_prefix))
        takes = _takes(field) if group is None else f"see `{inner_prefix}*`"
        default = "required" if name in required else _default(field.get("default"))
        rows.append((f"`{prefix}{name}`", takes, default, _text(field["description"])))
    yield f"{heading}\n\n{_text(schema['description'])}\n\n{_table(rows)}"
    for group, inner_prefix in groups:
        yield from _sections(root, group, inner_prefix, f"### `{inner_prefix}*`")


def _group(root: Schema, field: Schema, name: str) -> tuple[Schema | None, str]:
    """Return the schema and key prefix of a field that is a group of keys or a list of groups; else None."""
    for branch in _branches(field):
        if "$ref" in branch:
            return _resolve(root, branch), f"{name}."
        if "$ref" in branch.get("items", {}):
            return _resolve(root, branch["items"]), f"{name}.N."
    return None, ""


def _branches(field: Schema) -> Sequence[Schema]:
    """Return the alternatives of a field, without null."""
    return [branch for branch in field.get("anyOf", [field]) if branch.get("type") != "null"]


def _resolve(root: Schema, branch: Schema) -> Schema:
    found: Schema = root["$defs"][branch["$ref"].rpartition("/")[2]]
    return found


def _takes(field: Schema) -> str:
    """Return the values of a key in words. That it may be left out is shown by its default."""
    return " or ".join(_values(branch) for branch in _branches(field))


def _values(schema: Schema) -> str:
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is not None:
        return " or ".join(f"`{value}`" for value in values)
    if schema["type"] == "string":
        return "path" if schema.get("format") == "path" else "text"
    if schema["type"] == "array":
        return f"list of: {_values(schema['items'])}" if schema["items"] else "list"
    if schema["type"] == "object":
        each = _values(schema["additionalProperties"]) if _has_form(schema) else ""
        return f"names, each with: {each}" if each else "keys and values"
    bounds = " and ".join(f"{sign} {schema[name]}" for name, sign in BOUNDS.items() if name in schema)
    return f"{TYPES[schema['type']]} {bounds}".strip()


def _has_form(schema: Schema) -> bool:
    """Return whether the schema describes the values of a mapping."""
    return isinstance(schema.get("additionalProperties"), dict) and bool(schema["additionalProperties"])


def _default(value: object) -> str:
    if isinstance(value, dict):  # a group, all of whose keys have defaults of their own
        return ""
    return "–" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _text(docstring: str) -> str:
    """Return a docstring as one line of Markdown, without its references to docs/REFERENCE.md."""
    return " ".join(REFERENCE.sub("", docstring).replace("``", "`").split())


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [("key", "takes", "default", "meaning"), ("---",) * 4, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    print(render(), end="")
