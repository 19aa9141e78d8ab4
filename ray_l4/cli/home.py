"""``~`` in the paths of all commands: a shell leaves it alone in ``--run-dir=~/x``, and a script always does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ray_l4.config.paths import expand_home


class HomeGroup(TyperGroup):
    """A group of commands, all of which get their paths with ``~`` expanded."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for command in _commands(self):
            if command.callback is not None:
                command.callback = _expanding(command.callback)


def _commands(group: TyperGroup) -> Iterator[TyperCommand]:
    """Yield the commands of a group and of the groups in it."""
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            yield from _commands(command)
        elif isinstance(command, TyperCommand):
            yield command


def _expanding(callback: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(callback)
    def call(**values: Any) -> Any:
        return callback(**{name: _expanded(value) for name, value in values.items()})

    return call


def _expanded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_expanded, value))
    return expand_home(value) if isinstance(value, Path) else value
