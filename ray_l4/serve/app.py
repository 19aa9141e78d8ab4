"""The HTTP app: the same for one process and for replicas."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from ray_l4 import __version__
from ray_l4.serve import answer_routes, openai_routes
from ray_l4.serve.admission import Admission
from ray_l4.serve.problems import add_handlers
from ray_l4.serve.service import Service


def create_app(service: Service, keys: Collection[str] = (), extra: Sequence[APIRouter] = ()) -> FastAPI:
    """Build the app. Its routes find the service at ``request.app.state.service``; it is closed with the app.

    ``keys``: API keys, one of which a request must have, if there are any. ``extra``: further routes.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="ray-l4", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.service = service
    for router in (openai_routes.router, answer_routes.router, *extra):
        app.include_router(router)
    add_handlers(app)
    app.add_middleware(Admission, limits=service.limits, meter=service.meter, keys=keys)
    return app
