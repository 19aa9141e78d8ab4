"""Routes beside those of answers: the page, and what a run's service has and a checkpoint's has not."""

from __future__ import annotations

from fastapi import APIRouter

from ray_l4.serve.feedback_routes import feedback_router
from ray_l4.serve.page_route import page_router
from ray_l4.store.run_directory import RunDirectory


def routers(run: RunDirectory | None) -> list[APIRouter]:
    """Return the further routes of a service. ``run``: the run that is served; None for a checkpoint of no run."""
    return [page_router(), *([] if run is None else [feedback_router(run)])]
