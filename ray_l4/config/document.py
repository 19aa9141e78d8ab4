"""A configuration before validation: the tree of a YAML file, changed by ``--set``, with the origin of every value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ray_l4.config.problems import OVERRIDE, dotted
from ray_l4.config.strict_yaml import Location, after_first_value, line_of, parse, plain_scalar
from ray_l4.config.text import index_of, shown
from ray_l4.errors import ConfigError


@dataclass(frozen=True)
class Document:
    """Tree of a YAML file, or an empty tree, and a record of the overrides applied to it."""

    label: str
    """Name of the file in messages."""
    folder: Path
    """Folder to which relative paths in the file refer."""
    tree: dict[str, object] = field(default_factory=dict)
    root: yaml.Node | None = None
    """Syntax tree, for line numbers."""
    overridden: list[Location] = field(default_factory=list)
    """Locations set by overrides."""
    created: list[Location] = field(default_factory=list)
    """Groups that are missing from the file and were created by an override."""

    def where(self, location: Location) -> str:
        """Return the origin of the value at ``location``, for a message."""
        if self.is_overridden(location):
            return OVERRIDE
        line = line_of(self.root, location)
        origin = self.label if line is None else f"{self.label}:{line}"
        inside = [dotted(key) for key in self.overridden if key[: len(location)] == location]
        return f"{origin} with --set {', '.join(inside)}" if inside else origin

    def is_overridden(self, location: Location) -> bool:
        """Return whether an override set the value at ``location`` or a group around it."""
        return any(location[: len(key)] == key for key in (*self.overridden, *self.created))

    def base_folder(self, location: Location) -> Path:
        """Return the folder to which a relative path at ``location`` refers."""
        return Path.cwd() if self.is_overridden(location) else self.folder

    def get(self, location: Location) -> object:
        """Return the value at ``location``, or None if there is none."""
        value: Any = self.tree
        for key in location:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):  # validation reports a wrong type
                return None
        return value

    def set(self, keys: Sequence[str | int], value: object) -> Location:
        """Set the value at ``keys`` and return its location. Missing groups on the way are created.

        A text key of a list is converted to an index. Raises ConfigError if a key on the way does not exist in a list
        or if a value on the way has no keys.
        """
        parent: Any = self.tree
        location: Location = ()
        for name in keys[:-1]:
            key = _key_in(parent, name, location)
            location += (key,)
            if isinstance(parent, dict) and parent.get(key) is None:
                parent[key] = {}
                self.created.append(location)
            parent = parent[key]
        key = _key_in(parent, keys[-1], location)
        parent[key] = value
        return (*location, key)

    def override(self, text: str, takes_text: Callable[[Sequence[str]], bool] = lambda keys: False) -> None:
        """Apply an override ``key.sub=value``. The value is YAML; list items have indices (``stream.0.train=100``).

        A plain text is taken to the letter, where YAML would end it at `` #``; so is whatever is given to a key that
        ``takes_text``, unless all of it is in quotes or brackets, or is a number, true, false or null. Raises
        ConfigError if the override cannot be parsed, refers to a location that cannot exist, or would undo an earlier
        one.
        """
        name, equals, source = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {text}: expected key=value, with dots between keys (training.epochs=3)")
        if not source.strip():
            raise ConfigError(f"--set {text}: the value is missing (use null for no value, '\"\"' for empty text)")
        value = _value(source.strip(), f"--set {name}", takes_text(keys))
        try:
            location = self.set(keys, value)
        except ConfigError as error:
            raise ConfigError(f"--set {text}: {error}") from None
        undone = next((earlier for earlier in self.overridden if earlier[: len(location)] == location), None)
        if undone is not None:
            raise ConfigError(f"--set {text}: would undo the earlier --set {dotted(undone)}; give only one of them")
        self.overridden.append(location)


def _value(source: str, label: str, takes_text: bool) -> object:
    """Return the value that an override gives. Raises ConfigError if it is not YAML where it has to be."""
    quoted, bracketed = source.startswith(('"', "'")), source.startswith(("[", "{"))
    rest = after_first_value(source) if takes_text else ""
    if (quoted and not rest) or (bracketed and rest[:1] in ("", "#")):
        return parse(source, label)[0]
    if takes_text:
        return plain_scalar(source)
    value = parse(source, label)[0]
    return source if isinstance(value, str) else value


def _key_in(parent: object, name: str | int, location: Location) -> str | int:
    """Convert ``name`` to a key or an index of ``parent``, the value at ``location``."""
    match parent:
        case dict():
            return str(name)
        case list() if (index := index_of(str(name))) is not None and index < len(parent):
            return index
        case list():
            raise ConfigError(
                f"{dotted(location)} has {len(parent)} items, numbered from 0; there is no item {shown(str(name))}"
            )
        case _:
            raise ConfigError(f"{dotted(location)} is {parent!r}, which has no keys")


def read_document(path: Path) -> Document:
    """Read a YAML file. Raises ConfigError if it cannot be read, is not UTF-8 or YAML, or is not a mapping."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        inside = path / "config.yaml"
        hint = f" Did you mean {inside}?" if inside.is_file() else ""
        raise ConfigError(f"{path}: is a folder; expected a YAML file.{hint}") from None
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
