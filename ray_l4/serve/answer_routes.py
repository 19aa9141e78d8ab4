"""The project's own routes: an answer with the student and stage it comes from, health, and counters."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from ray_l4.serve.admission import DEADLINE
from ray_l4.serve.bodies import AnswerBody, json_body
from ray_l4.serve.meter import CONTENT_TYPE
from ray_l4.serve.replies import Reply
from ray_l4.serve.service import Service

router = APIRouter()


@router.post("/v1/answers")
async def answers(request: Request, body: Annotated[AnswerBody, Depends(json_body(AnswerBody))]) -> dict[str, Any]:
    """Answer a question about a task, as the run answers an example of its test set."""
    service: Service = request.app.state.service
    with service.model() as model:
        model.check_task(body.task)
        ask = partial(model.question, body.task, body.context, body.question, body.sampling)
        asked = await asyncio.to_thread(ask)
        reply = Reply(model, asked, request.scope[DEADLINE])
        answer = await reply.whole(request)
        return {
            "id": f"answer-{secrets.token_hex(12)}",
            "answer": answer,
            "task": body.task,
            "model": model.name,
            **model.place,
            "finish_reason": reply.finish,
            "context_cut": asked.cut,
            "usage": reply.usage,
        }


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """Say whether a model is loaded and runs, and which."""
    service: Service = request.app.state.service
    model = service.current
    if model is None:
        return JSONResponse({"status": "no model yet"}, 503, {"Retry-After": "5"})
    if not model.generator.is_alive():
        return JSONResponse({"status": "the model does not run any more", "model": model.name}, 503)
    return JSONResponse({"status": "ok", "model": model.name, **model.place, "tasks": list(model.tasks)})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the counters in Prometheus' format."""
    service: Service = request.app.state.service
    return Response(service.meter.page(), media_type=CONTENT_TYPE)
