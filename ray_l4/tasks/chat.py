"""Chat data as examples: conversations (``messages``) and pairs of ``prompt`` and ``completion``.

The last turn is the assistant's and is the answer; the user's turn before it is the question; all earlier turns are the
context. ``context`` holds them as plain text, and ``meta`` as they are, for a model with a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ray_l4.config.experiment import Columns
from ray_l4.tasks.files import require_columns

_SHAREGPT = "conversations"
"""Column of conversations in ShareGPT's layout; recognised besides ``Columns.messages``."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Names of roles in OpenAI's and ShareGPT's layouts -> the names that chat templates know."""

_HISTORY = "messages"
"""Key of ``meta`` under which the turns before the question are stored."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class UnusableRecordError(ValueError):
    """A record that is no conversation with an answer; the message says why."""


Reader = Callable[[Mapping[str, Any]], dict[str, object]]
"""Function from a record to context, question, references and meta. Raises UnusableRecordError."""


def reader_of(path: Path, columns: Columns, present: Sequence[str]) -> Reader | None:
    """Return the reader for a file with the columns ``present``; None if they are not those of chat data.

    Columns that the task renames decide; by default a file that has both a context and an answer is not chat data.

    Raises:
        DataError: the task renames a column of chat data, and the file lacks it.
    """
    renamed = {name for name, field in Columns.model_fields.items() if getattr(columns, name) != field.default}
    plain = {columns.context, columns.answer}
    if renamed & {"context", "question", "answer"} or (plain <= {*present} and not renamed & _CHAT_COLUMNS):
        return None
    for name in (columns.messages, _SHAREGPT):
        if name in present:
            return lambda record: _example(_turns(record.get(name), name), record.get(columns.references))
    if {columns.prompt, columns.completion} <= {*present}:
        return lambda record: _pair(record, columns)
    if "messages" in renamed:
        require_columns(path, list(present), columns.messages)
    if renamed & {"prompt", "completion"}:
        require_columns(path, list(present), columns.prompt, columns.completion)
    return None


_CHAT_COLUMNS = {"messages", "prompt", "completion"}


def meta_of(earlier: Sequence[Message]) -> str:
    """Return the ``meta`` of an example from the turns before its question."""
    return json.dumps({_HISTORY: list(earlier)}) if earlier else ""


def user_turn(context: str, question: str) -> Message:
    """Return a context and the question about it as one turn of the user, each on lines of its own."""
    return {"role": "user", "content": "\n".join(text for text in (context.strip(), question.strip()) if text)}


def history(meta: str) -> list[Message]:
    """Return the turns before an example's question, from its ``meta``; empty if it is not from chat data."""
    if not meta.startswith('{"' + _HISTORY + '"'):
        return []
    turns: list[Message] = json.loads(meta)[_HISTORY]
    return turns


def _pair(record: Mapping[str, Any], columns: Columns) -> dict[str, object]:
    """Return the example of a prompt (text or turns) and a completion (text, several right texts, or turns)."""
    prompt, completion = record.get(columns.prompt), record.get(columns.completion)
    others = record.get(columns.references)
    asked: list[Message] = (
        [{"role": "user", "content": _filled(prompt, columns.prompt)}]
        if isinstance(prompt, str)
        else _turns(prompt, columns.prompt)
    )
    if isinstance(completion, list) and completion and all(isinstance(text, str) for text in completion):
        completion, others = completion[0], [*completion[1:], *_texts(others)]
    answered: list[Message] = (
        [{"role": "assistant", "content": _filled(completion, columns.completion)}]
        if isinstance(completion, str)
        else _turns(completion, columns.completion)
    )
    return _example([*asked, *answered], others)


def _example(turns: Sequence[Message], others: object) -> dict[str, object]:
    """Return the example of a whole conversation. ``others``: further right answers, if any."""
    *asked, answer = turns
    if answer["role"] != "assistant":
        raise UnusableRecordError(f"the last message is the {answer['role']}'s, expected the assistant's answer")
    if not asked or asked[-1]["role"] != "user":
        before = f"a message of the {asked[-1]['role']}" if asked else "nothing"
        raise UnusableRecordError(f"{before} stands before the answer, expected one of the user")
    *earlier, question = asked
    return {
        "context": "\n".join(f"{turn['role']}: {turn['content']}" for turn in earlier),
        "question": question["content"],
        "references": list(dict.fromkeys([answer["content"], *_texts(others)])),
        "meta": meta_of(earlier),
    }


def _turns(value: object, column: str) -> list[Message]:
    if not isinstance(value, list):
        kind = "missing" if value is None else f"of type {type(value).__name__}"
        raise UnusableRecordError(f"{column} is {kind}, expected a list of messages")
    if not value:
        raise UnusableRecordError(f"{column} is an empty list, expected messages")
    return [_turn(message, f"{column}, message {number}") for number, message in enumerate(value, start=1)]


def _turn(message: object, where: str) -> Message:
    """Return a message in OpenAI's layout (role, content) or ShareGPT's (from, value). The text is stripped."""
    if not isinstance(message, dict):
        raise UnusableRecordError(f"{where} is of type {type(message).__name__}, expected an object")
    name = message.get("role") if message.get("role") is not None else message.get("from")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if not isinstance(name, str) or name not in _ROLES:
        raise UnusableRecordError(f"{where} has the role {name!r}, expected system, user or assistant")
    role = _ROLES[name]
    text = _joined(content, where)
    if not text.strip() and role != "system":
        raise UnusableRecordError(f"{where}: the {role}'s text is blank")
    return {"role": role, "content": text.strip()}


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


def _filled(text: str, column: str) -> str:
    if not text.strip():
        raise UnusableRecordError(f"{column} is blank")
    return text.strip()


def _texts(value: object) -> Iterator[str]:
    """Yield further right answers, given as a text or a list of texts; None has none."""
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip() for text in values):
        raise UnusableRecordError("references contains a value that is blank or no text, expected texts")
    yield from (text.strip() for text in values)
