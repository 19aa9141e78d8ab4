"""The routes of a run's service: feedback, new tasks, and the run at this moment."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ray_l4.errors import ConfigError, RunDirectoryError, nearest
from ray_l4.serve.bodies import json_body
from ray_l4.serve.feedback import RunSide
from ray_l4.serve.problems import RequestError
from ray_l4.serve.served_model import ServedModel
from ray_l4.serve.service import Service
from ray_l4.store.inbox.example import Example, now
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.inbox_tasks import InboxTask

MOST_CHARACTERS = 100_000
"""Length of a text of an example."""

Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FeedbackBody(_Body):
    """The body of ``/v1/feedback``: a question with the answer that is right."""

    task: str
    context: Text = ""
    question: Text | None = None
    """The task's own if all its examples have the same."""
    answer: Text
    given: Text | None = None
    """What the model answered."""


class TaskBody(_Body):
    """The body of ``/v1/tasks``: a task that is to be learned from the examples that follow."""

    task: str
    metric: str | None = None
    question: Text | None = None
    """The question of every example, if they share one."""


def feedback_router(run: RunDirectory) -> APIRouter:
    """Return the routes of a run's service."""
    router, side = APIRouter(), RunSide(run)

    @router.post("/v1/feedback")
    def feedback(request: Request, body: Annotated[FeedbackBody, Depends(json_body(FeedbackBody))]) -> dict[str, Any]:
        """Store an example of a task; answered once it is on disk."""
        found = side.task(body.task)
        if found is None:
            known = side.tasks().tasks
            hint = nearest(body.task, known)
            message = f"there is no task {body.task!r}. {hint} A new one begins with POST /v1/tasks."
            raise RequestError(404, message, "task_not_found", "task")
        service: Service = request.app.state.service
        question = _question(service, body, found)
        example = Example(body.context, question, (body.answer,), body.given, "feedback", now())
        example.check()
        if service.current is not None:
            service.current.check_example(example)
        try:
            receipt, waiting = side.add(body.task, example)
        except RunDirectoryError as error:
            raise _not_stored(error) from error
        return {"id": receipt.id, "task": body.task, "duplicate": receipt.duplicate, "waiting": waiting}

    @router.post("/v1/tasks")
    def tasks(body: Annotated[TaskBody, Depends(json_body(TaskBody))]) -> JSONResponse:
        """Begin a new task, whose examples are then taken by ``/v1/feedback``."""
        try:
            created = side.add_task(body.task, body.metric, body.question)
        except ConfigError as error:
            raise RequestError(400, str(error), "invalid_value") from error
        except RunDirectoryError as error:
            raise _not_stored(error) from error
        config = side.tasks().tasks[body.task].config
        answer = {"task": config.name, "metric": config.metric, "question": config.question, "created": created}
        return JSONResponse(answer, 201 if created else 200)

    @router.get("/v1/overview")
    def overview(request: Request, after: BackgroundTasks) -> dict[str, Any]:
        """Return what was learned when, what is served, and what waits; ``serving`` is what answers here and now."""
        service: Service = request.app.state.service
        after.add_task(side.look_at_files)
        current = service.current
        return side.overview().model_dump() | {"serving": None if current is None else _serving(current)}

    return router


def _serving(model: ServedModel) -> dict[str, Any]:
    """Return what answers here and now, and the questions that its tasks' examples share (None if they differ)."""
    questions = {task: model.habit(task).question for task in model.tasks}
    return {"model": model.name, **model.place, "tasks": list(model.tasks), "questions": questions}


def _question(service: Service, body: FeedbackBody, task: InboxTask) -> str:
    """Return the question of an example. Raises RequestError if it has none, and the task has none for all."""
    if body.question is not None:
        return body.question
    own, model = task.config.question, service.current
    if own is None and model is not None and body.task in model.tasks:
        own = model.habit(body.task).question
    if own is None:
        message = f"question is missing; the examples of {body.task} have questions of their own"
        raise RequestError(400, message, "missing", "question")
    return own


def _not_stored(error: RunDirectoryError) -> RequestError:
    return RequestError(503, f"{error} Nothing was stored; send it again.", "not_stored", retry_after=5)
