"""How OpenAI writes answers: whole, or as the events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ray_l4.serve.problems import RequestError
from ray_l4.serve.replies import Reply


@dataclass(frozen=True)
class Format:
    """How OpenAI writes answers of one kind."""

    prefix: str
    kind: str
    chunk: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str], dict[str, Any]]
    opening: tuple[dict[str, Any], ...] = ()

    def head(self, model: str, fingerprint: str) -> dict[str, Any]:
        """Return what all parts of an answer have in common."""
        name = f"{self.prefix}{secrets.token_hex(12)}"
        return {"id": name, "created": int(time.time()), "model": model, "system_fingerprint": fingerprint}


COMPLETION = Format(
    "cmpl-", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}
)
CHAT = Format(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    ({"delta": {"role": "assistant", "content": ""}},),
)


def choice_of(part: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """Return the one choice of an answer, or a piece of it."""
    return {"index": 0, **part, "logprobs": None, "finish_reason": finish}


async def events(
    reply: Reply, head: dict[str, Any], style: Format, with_usage: bool, held: ExitStack
) -> AsyncIterator[str]:
    """Yield the events of a streamed answer; an error after the first of them is an event as well."""

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        usage = {"usage": None} if with_usage else {}
        return _event({**head, "object": style.chunk, "choices": choices, **usage, **more})

    with held, reply:
        pieces = reply.pieces()
        piece = await anext(pieces, None)
        for part in style.opening:
            yield event([choice_of(part)])
        try:
            while piece is not None:
                yield event([choice_of(style.delta(piece))])
                piece = await anext(pieces, None)
            yield event([choice_of(style.delta(""), reply.finish)])
            if with_usage:
                yield event([], usage=reply.usage)
        except RequestError as error:
            yield _event(error.body)
        yield "data: [DONE]\n\n"


async def after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield what has been read ahead, then the rest. Events that are never read end with this iterator."""
    yield first
    async for event in rest:
        yield event


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
