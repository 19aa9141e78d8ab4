"""Conversations as examples keep them: the turns before the question are in ``meta``, for a model's chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypedDict

_HISTORY = "messages"
"""Key of ``meta`` under which the turns before the question are stored."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


def meta_of(earlier: Sequence[Message]) -> str:
    """Return the ``meta`` of an example from the turns before its question."""
    return json.dumps({_HISTORY: list(earlier)}) if earlier else ""


def user_turn(context: str, question: str) -> Message:
    """Return a context and the question about it as one turn of the user, each on lines of its own."""
    return {"role": "user", "content": "\n".join(text for text in (context.strip(), question.strip()) if text)}


def transcript(turns: Sequence[Message]) -> str:
    """Return turns as plain text, each on lines of its own after its role."""
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def history(meta: str) -> list[Message]:
    """Return the turns before an example's question, from its ``meta``; empty if it is not from chat data."""
    if not meta.startswith('{"' + _HISTORY + '"'):
        return []
    turns: list[Message] = json.loads(meta)[_HISTORY]
    return turns
