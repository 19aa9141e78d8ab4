"""OpenAI's routes: models, completions, and conversations, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ray_l4.serve.admission import DEADLINE
from ray_l4.serve.asked import Asked, Sampling
from ray_l4.serve.bodies import ChatBody, CompletionBody, Generation, json_body
from ray_l4.serve.openai_format import CHAT, COMPLETION, Format, after, choice_of, events
from ray_l4.serve.replies import Reply
from ray_l4.serve.served_model import ServedModel
from ray_l4.serve.service import Service
from ray_l4.tasks.chat import Message

router = APIRouter(prefix="/v1")


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

    return await _answer(request, body, body.sampling, asked, COMPLETION)


@router.post("/chat/completions")
async def chat(request: Request, body: Annotated[ChatBody, Depends(json_body(ChatBody))]) -> Response:
    """Answer the last message of a conversation."""

    def asked(model: ServedModel, task: str | None) -> Asked:
        if task is None:
            return model.conversation(body.turns, body.sampling)
        return as_question(model, task, body.turns, body.sampling)

    return await _answer(request, body, body.sampling, asked, CHAT)


def as_question(model: ServedModel, task: str, turns: list[Message], sampling: Sampling) -> Asked:
    """Return a conversation as a question about a task.

    The last message is the question. What precedes it are earlier turns for a model with a chat template, and the
    context for any other. If there is nothing before it, and the task always asks the same question, it is the context.
    """
    *earlier, last = turns
    text = last["content"]
    if not earlier and model.usual_question(task) is not None:
        return model.question(task, text, None, sampling)
    if model.chats:
        return model.question(task, "", text, sampling, earlier)
    return model.question(task, "\n".join(turn["content"] for turn in earlier), text, sampling)


async def _answer(
    request: Request,
    body: Generation,
    sampling: Sampling,
    asked: Callable[[ServedModel, str | None], Asked],
    style: Format,
) -> Response:
    service = _service(request)
    with ExitStack() as held:
        model = held.enter_context(service.model())
        task = model.task_named(body.model)
        prepared = await asyncio.to_thread(asked, model, task)
        reply = Reply(model, prepared, request.scope[DEADLINE], body.stops, streams=bool(body.stream))
        head = style.head(body.model, model.fingerprint)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            rest = events(reply, head, style, with_usage, held.pop_all())
            first = await anext(rest)  # an error before it has a status of its own
            return StreamingResponse(
                after(first, rest), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        text = await reply.whole(request)
        choice = choice_of(style.choice(text), reply.finish)
        return JSONResponse({**head, "object": style.kind, "choices": [choice], "usage": reply.usage})


def _model_object(model: ServedModel, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": model.loaded_at, "owned_by": "ray-l4", **model.place}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
