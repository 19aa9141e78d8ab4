"""The messages of one record of chat data, in the layouts of OpenAI and ShareGPT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray_l4.config.text import is_blank
from ray_l4.tasks.chat import Message

_SYSTEM = ("system", "system_prompt")
"""Columns of a system prompt beside the other turns, as ShareGPT's and Orca's files have them."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Names of roles in OpenAI's and ShareGPT's layouts -> the names that chat templates know."""


class UnusableRecordError(ValueError):
    """A record that is no conversation with an answer; the message says why."""


def conversation(record: Mapping[str, Any], column: str) -> list[Message]:
    """Return the turns in a column, text in JSON if the file's format has no lists."""
    value = record.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UnusableRecordError(f"{column} is text but not JSON ({error}), expected a list of messages") from None
    return with_system(record, messages(value, column))


def with_system(record: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """Return ``turns`` after the system prompt that the record has in a column of its own, if any."""
    for column in _SYSTEM:
        text = record.get(column)
        if text is None or (isinstance(text, str) and is_blank(text)):
            continue
        if not isinstance(text, str):
            raise UnusableRecordError(f"{column} is of type {type(text).__name__}, expected text")
        first: Message = {"role": "system", "content": text.strip()}
        if turns and turns[0]["role"] == "system" and turns[0] != first:
            raise UnusableRecordError(f"{column} differs from the system prompt among the messages, expected one")
        return turns if turns[:1] == [first] else [first, *turns]
    return turns


def up_to_answer(turns: Sequence[Message]) -> list[Message]:
    """Return the turns up to the assistant's last one: what comes after it, such as thanks, has no answer."""
    count = max((number for number, turn in enumerate(turns, start=1) if turn["role"] == "assistant"), default=0)
    if not count:
        raise UnusableRecordError("no message is the assistant's, expected its answer")
    return list(turns[:count])


def messages(value: object, column: str) -> list[Message]:
    """Return the messages in a column, without blank system prompts. Raises UnusableRecordError."""
    if not isinstance(value, list):
        kind = "missing" if value is None else f"of type {type(value).__name__}"
        raise UnusableRecordError(f"{column} is {kind}, expected a list of messages")
    if not value:
        raise UnusableRecordError(f"{column} is an empty list, expected messages")
    turns = [_turn(message, f"{column}, message {number}") for number, message in enumerate(value, start=1)]
    return [turn for turn in turns if turn["content"]]


def _turn(message: object, where: str) -> Message:
    """Return a message in OpenAI's layout (role, content) or ShareGPT's (from, value), its text stripped.

    A blank system prompt is none: its text is empty then. Any other blank text raises UnusableRecordError.
    """
    if not isinstance(message, dict):
        raise UnusableRecordError(f"{where} is of type {type(message).__name__}, expected an object")
    name = message.get("role") if message.get("role") is not None else message.get("from")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if not isinstance(name, str) or name not in _ROLES:
        raise UnusableRecordError(f"{where} has the role {name!r}, expected system, user or assistant")
    role = _ROLES[name]
    text = _joined(content, where)
    blank = is_blank(text)
    if blank and role != "system":
        raise UnusableRecordError(f"{where}: the {role}'s text is blank")
    return {"role": role, "content": "" if blank else text.strip()}


def _joined(content: object, where: str) -> str:
    """Return a message's text, given as such or in parts (``{"type": "text", "text": ...}``)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        kind = "missing" if content is None else f"of type {type(content).__name__}"
        raise UnusableRecordError(f"{where}: content is {kind}, expected text")
    texts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            found = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UnusableRecordError(f"{where}: content has a part of type {found!r}, expected text")
        texts.append(part["text"])
    return "".join(texts)
