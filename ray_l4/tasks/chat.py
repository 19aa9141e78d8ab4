"""Chat data as examples: conversations (``messages``) and pairs of ``prompt`` and ``completion``.

The last turn of the assistant is the answer; the user's turn before it is the question; all earlier turns are the
context, and later ones are left out. ``context`` holds them as plain text, and ``meta`` as they are, for a model with a
chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ray_l4.config.experiment import Columns
from ray_l4.config.text import is_blank
from ray_l4.errors import DataError
from ray_l4.tasks.files import require_columns

_SHAREGPT = "conversations"
"""Column of conversations in ShareGPT's layout; recognised besides ``Columns.messages``."""

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
        DataError: the task renames a column of chat data, and the file lacks it; or a context beside conversations
            would be left out.
    """
    renamed = {name for name, field in Columns.model_fields.items() if getattr(columns, name) != field.default}
    plain = {columns.context, columns.answer}
    named = renamed & _CHAT_COLUMNS
    if renamed & {"question", "answer"} or (not named and ("context" in renamed or plain <= {*present})):
        return None
    for name in (columns.messages, _SHAREGPT):
        if name in present:
            if columns.context in present and ("context" in renamed or "messages" not in columns.model_fields_set):
                raise DataError(
                    f"{path}: has conversations ({name}) and a column {columns.context!r}, of which the model would "
                    "see nothing. Put it into the messages, or set columns: {messages: " + name + "} to leave it out."
                )
            return lambda record: _example(_conversation(record, name), record.get(columns.references))
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


def _conversation(record: Mapping[str, Any], column: str) -> list[Message]:
    """Return the turns in a column, text in JSON if the file's format has no lists."""
    value = record.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UnusableRecordError(f"{column} is text but not JSON ({error}), expected a list of messages") from None
    return _with_system(record, _turns(value, column))


def _with_system(record: Mapping[str, Any], turns: list[Message]) -> list[Message]:
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


def _pair(record: Mapping[str, Any], columns: Columns) -> dict[str, object]:
    """Return the example of a prompt (text or turns) and a completion (text, several right texts, or turns).

    A context, if the file has such a column, stands before the question.
    """
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
        else _up_to_answer(_turns(completion, columns.completion))
    )
    context = None if columns.context in (columns.prompt, columns.completion) else record.get(columns.context)
    if context is not None and not isinstance(context, str):
        raise UnusableRecordError(f"{columns.context} is of type {type(context).__name__}, expected text")
    return _example(_with_system(record, [*asked, *answered]), others, context or "")


def _up_to_answer(turns: Sequence[Message]) -> list[Message]:
    """Return the turns up to the assistant's last one: what comes after it, such as thanks, has no answer."""
    count = max((number for number, turn in enumerate(turns, start=1) if turn["role"] == "assistant"), default=0)
    if not count:
        raise UnusableRecordError("no message is the assistant's, expected its answer")
    return list(turns[:count])


def _example(turns: Sequence[Message], others: object, context: str = "") -> dict[str, object]:
    """Return the example of a whole conversation.

    ``others``: further right answers, if any. ``context``: what stands before the question besides earlier turns.
    """
    *asked, answer = _up_to_answer(turns)
    if not asked or asked[-1]["role"] != "user":
        before = f"a message of the {asked[-1]['role']}" if asked else "nothing"
        raise UnusableRecordError(f"{before} stands before the answer, expected one of the user")
    *earlier, last = asked
    question, given = last["content"], "" if is_blank(context) else context.strip()
    if earlier and given:  # earlier turns take the place of the context
        question, given = f"{given}\n{question}", ""
    return {
        "context": given or "\n".join(f"{turn['role']}: {turn['content']}" for turn in earlier),
        "question": question,
        "references": list(dict.fromkeys([answer["content"], *_texts(others)])),
        "meta": meta_of(earlier),
    }


def _turns(value: object, column: str) -> list[Message]:
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


def _filled(text: str, column: str) -> str:
    if is_blank(text):
        raise UnusableRecordError(f"{column} is blank")
    return text.strip()


def _texts(value: object) -> Iterator[str]:
    """Yield further right answers, given as a text or a list of texts; None has none."""
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) and not is_blank(text) for text in values):
        raise UnusableRecordError("references contains a value that is blank or no text, expected texts")
    yield from (text.strip() for text in values)
