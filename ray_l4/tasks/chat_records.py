"""Chat data as examples: conversations (``messages``) and pairs of ``prompt`` and ``completion``.

The last turn of the assistant is the answer; the user's turn before it is the question; all earlier turns are the
context, and later ones are left out. ``context`` holds them as plain text, and ``meta`` as they are, for a model with a
chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_l4.config.stream import Columns
from ray_l4.config.text import is_blank
from ray_l4.errors import DataError
from ray_l4.tasks.chat import Message, meta_of, transcript
from ray_l4.tasks.chat_messages import UnusableRecordError, conversation, messages, up_to_answer, with_system
from ray_l4.tasks.files import require_columns

_SHAREGPT = "conversations"
"""Column of conversations in ShareGPT's layout; recognised besides ``Columns.messages``."""

_CHAT_COLUMNS = {"messages", "prompt", "completion"}

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
            return lambda record: _example(conversation(record, name), _others(record, columns))
    if {columns.prompt, columns.completion} <= {*present}:
        return lambda record: _pair(record, columns)
    if "messages" in renamed:
        require_columns(path, list(present), columns.messages)
    if renamed & {"prompt", "completion"}:
        require_columns(path, list(present), columns.prompt, columns.completion)
    return None


def _pair(record: Mapping[str, Any], columns: Columns) -> dict[str, object]:
    """Return the example of a prompt (text or turns) and a completion (text, several right texts, or turns).

    A context, if the file has such a column, stands before the question.
    """
    prompt, completion = record.get(columns.prompt), record.get(columns.completion)
    others = _others(record, columns)
    asked: list[Message] = (
        [{"role": "user", "content": _filled(prompt, columns.prompt)}]
        if isinstance(prompt, str)
        else messages(prompt, columns.prompt)
    )
    if isinstance(completion, list) and any(isinstance(text, str) for text in completion):
        completion, *more = _texts(completion, columns.completion)
        others = [*more, *others]
    answered: list[Message] = (
        [{"role": "assistant", "content": _filled(completion, columns.completion)}]
        if isinstance(completion, str)
        else up_to_answer(messages(completion, columns.completion))
    )
    context = None if columns.context in (columns.prompt, columns.completion) else record.get(columns.context)
    if context is not None and not isinstance(context, str):
        raise UnusableRecordError(f"{columns.context} is of type {type(context).__name__}, expected text")
    return _example(with_system(record, [*asked, *answered]), others, context or "")


def _example(turns: Sequence[Message], others: Sequence[str], context: str = "") -> dict[str, object]:
    """Return the example of a whole conversation.

    ``others``: further right answers. ``context``: what stands before the question besides earlier turns.
    """
    *asked, answer = up_to_answer(turns)
    if not asked or asked[-1]["role"] != "user":
        before = f"a message of the {asked[-1]['role']}" if asked else "nothing"
        raise UnusableRecordError(f"{before} stands before the answer, expected one of the user")
    *earlier, last = asked
    question, given = last["content"], "" if is_blank(context) else context.strip()
    if earlier and given:  # earlier turns take the place of the context
        question, given = f"{given}\n{question}", ""
    return {
        "context": given or transcript(earlier),
        "question": question,
        "references": list(dict.fromkeys([answer["content"], *others])),
        "meta": meta_of(earlier),
    }


def _filled(text: str, column: str) -> str:
    if is_blank(text):
        raise UnusableRecordError(f"{column} is blank")
    return text.strip()


def _others(record: Mapping[str, Any], columns: Columns) -> list[str]:
    """Return further right answers, given as a text or a list of texts; None has none."""
    value = record.get(columns.references)
    return [] if value is None else _texts([value] if isinstance(value, str) else value, columns.references)


def _texts(value: object, column: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) and not is_blank(text) for text in value):
        raise UnusableRecordError(f"{column} contains a value that is blank or no text, expected texts")
    return [text.strip() for text in value]
