"""A strict subset of YAML, in which duplicate keys and ambiguous scalars cannot be misread silently.

Scalars follow YAML 1.2's core schema, because PyYAML's 1.1 rules read ``no`` as false and ``1e-3`` as text. Aliases and
tags are refused: they obscure the values of a file, and editing one value would change another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from ray_l4.errors import ConfigError

Location = tuple[str | int, ...]
"""Path of a value from the root: keys of mappings and indices of lists."""

_TEXT = "tag:yaml.org,2002:str"
_FLOAT = re.compile(
    r"""^(?: [-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?
         | [-+]?[0-9]+[eE][-+]?[0-9]+
         | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN) )$""",
    re.VERBOSE,
)
# At most 25 digits. Longer ones stay text, since Python limits the length of a number that it converts.
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]{0,24})$")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            raise _error("aliases (*x) and tags (!x) are not supported; write the value out", event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: dict) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != _TEXT:
                raise _error("a key must be text; put it in quotes", key.start_mark)
            line = key.start_mark.line + 1
            if key.value in first:
                raise _error(f"key {key.value!r} appears twice (first in line {first[key.value]})", key.start_mark)
            first[key.value] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which PyYAML's rules or ``_Loader`` would read as another type."""


_Loader.yaml_implicit_resolvers = {}  # instead of YAML 1.1's
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only double quotes escape every character; elsewhere PyYAML folds line separators such as U+0085 to spaces.
    return dumper.represent_scalar(_TEXT, text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)


def _error(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def parse(text: str, label: str) -> tuple[object, yaml.Node | None]:
    """Return the value of a YAML text and its syntax tree, from which :func:`line_of` reads line numbers.

    ``label`` is the name of the text in messages. Raises ConfigError with the line and column of an error.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{label}{position}: not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{label}:{line}: character {error.character:#x} is not allowed in YAML") from None
    except RecursionError:
        raise ConfigError(f"{label}: nested too deeply to be read") from None


def after_first_value(text: str) -> str:
    """Return what follows the first value of ``text``, without blanks; nothing if that value is not complete."""
    try:
        node = next(yaml.compose_all(text, _Loader), None)
    except (yaml.YAMLError, RecursionError):
        return ""
    return "" if node is None else text[node.end_mark.index :].strip()


def plain_scalar(text: str) -> object:
    """Return the value of ``text`` as one unquoted scalar: a number, true, false, null, or else the text itself."""
    loader = _Loader("")
    node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
    return loader.construct_document(node)


def line_of(node: yaml.Node | None, location: Sequence[str | int]) -> int | None:
    """Return the line (from 1) of the value at ``location``, or of the closest value around it that exists."""
    line = None
    for name in location:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == name), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(name, int) and name < len(node.value):
            pair = (node.value[name], node.value[name])
        else:
            pair = None
        if pair is None:
            break
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line


def dump(data: Mapping[str, object], width: float = 120) -> str:
    """Return plain data as YAML, in the order of its keys. :func:`parse` returns an equal object.

    ``width``: characters after which a text is continued on the next line.
    """
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
