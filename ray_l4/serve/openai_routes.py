"""OpenAI's routes: models, completions, and conversations, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ray_l4.serve.bodies import ChatBody, CompletionBody, Generation, json_body
from ray_l4.serve.gate import DEADLINE
from ray_l4.serve.problems import RequestError
from ray_l4.serve.replies import Reply
from ray_l4.serve.served_model import Asked, Sampling, ServedModel
from ray_l4.serve.service import Service
from ray_l4.tasks.chat import Message

router = APIRouter(prefix="/v1")


@dataclass(frozen=True)
class _Format:
    """How OpenAI writes answers of one kind."""

    prefix: str
    kind: str
    chunk: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str], dict[str, Any]]
    opening: tuple[dict[str, Any], ...] = ()


_COMPLETION = _Format(
    "cmpl-", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}
)
_CHAT = _Format(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    ({"delta": {"role": "assistant", "content": ""}},),
)


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """List the run and its tasks."""
    with _service(request).model() as model:
        names = [model.name, *(f"{model.name}/{task}" for task in model.tasks)]
        return {"object": "list", "data": [_model_object(model, name) for name in names]}


@router.get("/models/{name:path}")
async def one_model(request: Request, name: str) -> dict[str, Any]:
    """Describe one model."""
    with _service(request).model() as model:
        model.task_named(name)
        return _model_object(model, name)


@router.post("/completions")
async def completions(
    request: Request, body: Annotated[CompletionBody, Depends(json_body(CompletionBody))]
) -> Response:
    """Continue a prompt, or answer it as a question about a task."""

    def asked(model: ServedModel, task: str | None) -> Asked:
        if task is None:
            return model.plain(body.text, body.sampling)
        return as_question(model, task, [{"role": "user", "content": body.text}], body.sampling)

    return await _answer(request, body, body.sampling, asked, _COMPLETION)


@router.post("/chat/completions")
async def chat(request: Request, body: Annotated[ChatBody, Depends(json_body(ChatBody))]) -> Response:
    """Answer the last message of a conversation."""

    def asked(model: ServedModel, task: str | None) -> Asked:
        if task is None:
            return model.conversation(body.turns, body.sampling)
        return as_question(model, task, body.turns, body.sampling)

    return await _answer(request, body, body.sampling, asked, _CHAT)


def as_question(model: ServedModel, task: str, turns: list[Message], sampling: Sampling) -> Asked:
    """Return a conversation as a question about a task.

    The last message is the question. What precedes it are earlier turns for a model with a chat template, and the
    context for any other. If there is nothing before it, and the task always asks the same question, it is the context.
    """
    *earlier, last = turns
    text = last["content"]
    if not earlier and model.habit(task).question is not None:
        return model.question(task, text, None, sampling)
    if model.chats:
        return model.question(task, "", text, sampling, earlier)
    return model.question(task, "\n".join(turn["content"] for turn in earlier), text, sampling)


async def _answer(
    request: Request,
    body: Generation,
    sampling: Sampling,
    asked: Callable[[ServedModel, str | None], Asked],
    style: _Format,
) -> Response:
    service = _service(request)
    check_tokens(service, sampling)
    with ExitStack() as held:
        model = held.enter_context(service.model())
        task = model.task_named(body.model)
        prepared = await asyncio.to_thread(asked, model, task)
        reply = Reply(model, prepared, deadline_of(request), body.stops, streams=bool(body.stream))
        head = {
            "id": f"{style.prefix}{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": model.fingerprint,
        }
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = _events(reply, head, style, with_usage, held.pop_all())
            first = await anext(events)  # an error before it has a status of its own
            return StreamingResponse(
                _after(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        text = await reply.whole(request)
        choice = {"index": 0, **style.choice(text), "logprobs": None, "finish_reason": reply.finish}
        return JSONResponse({**head, "object": style.kind, "choices": [choice], "usage": reply.usage})


async def _events(
    reply: Reply, head: dict[str, Any], style: _Format, with_usage: bool, held: ExitStack
) -> AsyncIterator[str]:
    """Yield the events of a streamed answer; an error after the first of them is an event as well."""

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        usage = {"usage": None} if with_usage else {}
        return _event({**head, "object": style.chunk, "choices": choices, **usage, **more})

    def choice(part: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, **part, "logprobs": None, "finish_reason": finish}]

    with held, reply:
        pieces = reply.pieces()
        piece = await anext(pieces, None)
        for part in style.opening:
            yield event(choice(part))
        try:
            while piece is not None:
                yield event(choice(style.delta(piece)))
                piece = await anext(pieces, None)
            yield event(choice(style.delta(""), reply.finish))
            if with_usage:
                yield event([], usage=reply.usage)
        except RequestError as error:
            yield _event(error.body)
        yield "data: [DONE]\n\n"


async def _after(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield what has been read ahead, then the rest. Events that are never read end with this iterator."""
    yield first
    async for event in events:
        yield event


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def deadline_of(request: Request) -> float:
    """Return the time of the event loop at which a request is given up."""
    deadline: float = request.scope[DEADLINE]
    return deadline


def check_tokens(service: Service, sampling: Sampling) -> None:
    """Raise RequestError if a request asks for too many new tokens."""
    most = service.limits.new_tokens
    if sampling.max_tokens is not None and sampling.max_tokens > most:
        raise RequestError(400, f"max_tokens: at most {most:,} are generated", "invalid_value", "max_tokens")


def _model_object(model: ServedModel, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": model.loaded_at, "owned_by": "ray-l4", **model.place}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
