"""A configuration before it is checked: a file's tree, changed by ``--set``, that knows where each value came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ray_l4.config.problems import dotted
from ray_l4.config.strict_yaml import Location, line_of, parse
from ray_l4.errors import ConfigError


@dataclass(frozen=True)
class Document:
    """The tree of one file, or an empty one, and the places that overrides have set."""

    label: str
    """Names the file in messages."""
    folder: Path
    """Relative paths of the file start here."""
    tree: dict[str, object] = field(default_factory=dict)
    root: yaml.Node | None = None
    """The syntax tree, for line numbers."""
    overridden: list[Location] = field(default_factory=list)
    """What overrides set."""
    made: list[Location] = field(default_factory=list)
    """Groups that the file lacks and an override needed."""

    def where(self, location: Location) -> str:
        """The origin of the value at ``location``, for a message."""
        if self.is_overridden(location):
            return "--set"
        line = line_of(self.root, location)
        place = self.label if line is None else f"{self.label}:{line}"
        inside = [dotted(key) for key in self.overridden if key[: len(location)] == location]
        return f"{place} with --set {', '.join(inside)}" if inside else place

    def is_overridden(self, location: Location) -> bool:
        """Whether an override set this value or one that holds it."""
        return any(location[: len(key)] == key for key in (*self.overridden, *self.made))

    def base_of(self, location: Location) -> Path:
        """The folder in which a relative path at ``location`` starts."""
        return Path.cwd() if self.is_overridden(location) else self.folder

    def get(self, location: Location) -> object:
        """The value at ``location``; None where there is none."""
        value: Any = self.tree
        for step in location:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):  # a wrong type is reported when the tree is checked
                return None
        return value

    def set(self, steps: Sequence[str | int], value: object) -> Location:
        """Put ``value`` at ``steps`` and return its location; groups missing on the way are made.

        Raises ConfigError if a step has no place to go.
        """
        holder: Any = self.tree
        location: Location = ()
        for step in steps[:-1]:
            key = _key(holder, step, location)
            location += (key,)
            if isinstance(holder, dict) and holder.get(key) is None:
                holder[key] = {}
                self.made.append(location)
            holder = holder[key]
        key = _key(holder, steps[-1], location)
        holder[key] = value
        return (*location, key)

    def override(self, text: str) -> None:
        """Apply ``key.sub=value``: the value is YAML, items of a list go by index (``stream.0.train=100``).

        Raises ConfigError if the text cannot be read, has no place to go, or would undo an earlier override.
        """
        name, equals, source = text.partition("=")
        steps = name.strip().split(".")
        if not equals or not all(steps):
            raise ConfigError(f"--set {text}: expected key=value, with dots between keys (training.epochs=3)")
        if not source.strip():
            raise ConfigError(f"--set {text}: the value is missing (null for nothing, '\"\"' for empty text)")
        value, _ = parse(source, f"--set {name}")
        try:
            location = self.set(steps, value)
        except ConfigError as error:
            raise ConfigError(f"--set {text}: {error}") from None
        undone = next((earlier for earlier in self.overridden if earlier[: len(location)] == location), None)
        if undone is not None:
            raise ConfigError(f"--set {text}: would undo the earlier --set {dotted(undone)}; give only one of them")
        self.overridden.append(location)


def _key(holder: object, step: str | int, location: Location) -> str | int:
    """``step`` as a key or an index of ``holder``, which stands at ``location``."""
    match holder:
        case dict():
            return str(step)
        case list() if str(step).isdecimal() and int(step) < len(holder):
            return int(step)
        case list():
            raise ConfigError(f"{dotted(location)} has {len(holder)} items, counted from 0, and none at {step!r}")
        case _:
            raise ConfigError(f"{dotted(location)} is {holder!r}, which has no keys")


def read_document(path: Path) -> Document:
    """Read a YAML file. Raises ConfigError if it cannot be read, is not UTF-8 or YAML, or holds no mapping."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} ({content[error.start]:#04x}) is not UTF-8; save the file as UTF-8"
        ) from None
    tree, root = parse(text, str(path))
    if tree is None:
        raise ConfigError(f"{path}: the file is empty")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values (key: value), found {type(tree).__name__}")
    return Document(str(path), path.absolute().parent, tree, root)
