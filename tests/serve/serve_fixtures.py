"""A service of a small run in this process: a real server at a loopback address, and what the run itself answered."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pyarrow.parquet as pq
from fastapi import APIRouter

from ray_l4.serve.app import create_app
from ray_l4.serve.follow import Follower
from ray_l4.serve.one_process import open_service
from ray_l4.serve.opening import ServeOptions
from ray_l4.serve.served_model import Loader
from ray_l4.serve.server import Server, bound_socket
from ray_l4.serve.service import Service
from ray_l4.store.run_directory import Cell, RunDirectory

TASKS = ("mini.rest", "mini.woz")
"""Those of the run, in the order in which it learned them; its epochs are ``EPOCHS``."""
EPOCHS = 3
LIMIT = 30.0


@dataclass(frozen=True)
class Served:
    """A running service."""

    address: str
    service: Service
    stop: Callable[[], None]
    """Ends the server."""
    client: httpx.Client
    """Keeps its connections: making a client takes longer than most answers."""

    @property
    def name(self) -> str:
        """Name of its model."""
        return self.model.name

    @property
    def model(self) -> Any:
        """The model that it serves now."""
        assert self.service.current is not None
        return self.service.current

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        """Send JSON."""
        return self.client.post(path, json=body, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        """Read a page."""
        return self.client.get(path, **more)

    def openai(self) -> openai.OpenAI:
        """A client that does not repeat what fails."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=LIMIT)


@contextmanager
def serving(
    folder: Path,
    limits: Mapping[str, object] | None = None,
    keys: frozenset[str] = frozenset(),
    interval: float | None = None,
    extra: list[APIRouter] | None = None,
) -> Iterator[Served]:
    """Serve a folder. ``interval``: seconds between two looks at the run, if it is followed."""
    options = ServeOptions(folder, "127.0.0.1", 0, dict(limits or {}))
    if interval is None:
        service, follower = open_service(options)
    else:
        service, follower = followed(options, interval)
    bound = bound_socket(options.host, options.port)
    server = Server(create_app(service, keys, extra or []), bound, service.limits)
    try:
        assert server.wait_until_started(LIMIT)
        with httpx.Client(base_url=server.address, timeout=LIMIT) as client:
            yield Served(server.address, service, server.stop, client)
    finally:
        if follower is not None:
            follower.close()
        server.stop()


def followed(options: ServeOptions, interval: float) -> tuple[Service, Follower]:
    """A service that follows its run more closely than a command does, beginning without a model."""
    from ray_l4.serve.limits import Limits
    from ray_l4.serve.meter import Meter

    run, limits, meter = options.run, Limits.model_validate(options.limits), Meter()
    assert run is not None
    service = Service(limits, meter, run)
    follower = Follower(run, service, Loader(limits, meter), interval)
    return service, follower


def copy_of(run: RunDirectory, folder: Path) -> RunDirectory:
    """A copy of a run that a test may change."""
    shutil.copytree(run.path, folder)
    return RunDirectory(folder)


def answered(run: RunDirectory, stage: int, student: int, task: str) -> list[dict[str, Any]]:
    """What a student answered to the test set after a stage: rows with context, question and prediction."""
    cell = Cell(stage, EPOCHS, student, task)
    rows: list[dict[str, Any]] = pq.read_table(run.path / "predictions" / f"{cell.name}.parquet").to_pylist()
    return rows


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
