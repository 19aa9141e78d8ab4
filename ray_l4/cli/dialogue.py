"""Dialogues of ``ask``: questions to a text, or the turns of a conversation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import typer

from ray_l4.errors import DataError

if TYPE_CHECKING:
    from ray_l4.tasks.chat import Message


class Answer(Protocol):
    """Function from context, question and earlier turns to the answer. Raises DataError."""

    def __call__(self, context: str, question: str, earlier: Sequence[Message] = ()) -> str: ...


def put_questions(answer: Answer, title: str, context: str, usual: str | None) -> None:
    """Answer questions until the end of the input, each by itself. An empty line keeps the context.

    ``usual``: the question of every example; if None, it is asked for.
    """
    typer.echo(f"{title}. An empty context keeps the last one; Ctrl-D ends.", err=True)
    if usual is not None:
        typer.echo(f"question of every example: {usual}", err=True)
    while True:
        try:
            context = _context(context)
            question = usual if usual is not None else _line("question: ")
        except EOFError:
            typer.echo(err=True)
            return
        try:
            typer.echo(answer(context, question))
        except DataError as error:
            typer.echo(f"error: {error}", err=True)


def hold_conversations(answer: Answer, title: str, context: str) -> None:
    """Answer the user's turns until the end of the input; an empty line ends a conversation and begins another.

    The context stands before a conversation's first question. It is asked for if it is not given.
    """
    typer.echo(f"{title}. Earlier turns are kept; an empty line begins a new conversation; Ctrl-D ends.", err=True)
    given = context
    try:
        while True:
            context, given = given or _context(context), ""
            _converse(answer, context)
    except EOFError:
        typer.echo(err=True)


def _converse(answer: Answer, context: str) -> None:
    from ray_l4.tasks.chat import user_turn

    earlier: list[Message] = []
    while question := _line("user: "):
        try:
            text = answer(context, question, earlier)
        except DataError as error:
            typer.echo(f"error: {error}", err=True)
            continue
        typer.echo(text)
        earlier += [user_turn(context, question), {"role": "assistant", "content": text}]
        context = ""  # it is in the first turn from now on


def _context(last: str) -> str:
    return _line(f"context{' (empty: as before)' if last else ''}: ") or last


def _line(prompt: str) -> str:
    """Read a line from standard input. Raises EOFError at its end."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        import readline  # noqa: F401 - makes input() a line editor with a history

        return input(prompt).strip()
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()
