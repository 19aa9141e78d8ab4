"""Errors of Ray Serve's proxy: plain text becomes OpenAI's format, and all else stays as it is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_l4.serve.proxy_errors import ProxyErrors, middlewares


def saying(messages: Sequence[Message]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def answer(app: ASGIApp, path: str = "/v1/models") -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyErrors(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_a_service_that_is_not_there_yet_is_one_to_try_again() -> None:
    found = answer(saying(convert_object_to_asgi_messages("Path '/v1/models' not found.", status_code=404)))
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
    assert found.json()["error"]["code"] == "not_ready" and "starting" in found.json()["error"]["message"]


@pytest.mark.parametrize("status", [408, 500, 503])
def test_other_errors_keep_their_status_and_text(status: int) -> None:
    start, body = convert_object_to_asgi_messages("a replica died", status_code=status)
    halves = [{**body, "body": body["body"][:5], "more_body": True}, {**body, "body": body["body"][5:]}]
    found = answer(saying([start, *halves]))
    assert found.status_code == status and found.json()["error"]["message"] == "a replica died"
    assert ("retry-after" in found.headers) == (status == 503)


def test_what_the_app_answers_is_passed_on() -> None:
    ours = {"error": {"message": "unknown task"}}
    assert answer(JSONResponse(ours, 404)).json() == ours
    events = StreamingResponse(iter(["a", "b"]), media_type="text/plain")
    assert (answer(events).text, answer(events).status_code) == ("ab", 200)


def test_routes_of_ray_itself_are_left_alone() -> None:
    found = answer(saying(convert_object_to_asgi_messages("no route table yet", status_code=503)), "/-/healthz")
    assert (found.status_code, found.text) == (503, "no route table yet")


def test_other_connections_are_left_alone() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])
        await send({"type": "websocket.close"})

    async def send(message: Message) -> None:
        seen.append(message["type"])

    async def receive() -> Message:
        raise AssertionError

    asyncio.run(ProxyErrors(app)({"type": "websocket", "path": "/"}, receive, send))
    assert seen == ["websocket", "websocket.close"]


def test_the_callback_returns_what_ray_serve_expects() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    assert [own.cls for own in validate_http_proxy_callback_return(middlewares())] == [ProxyErrors]


_PROXY_ALONE = """
import sys
from contextlib import ExitStack

import httpx
import ray
from ray.cluster_utils import Cluster
from ray_l4.config.loading import load_cluster
from ray_l4.serve import replicas
from ray_l4.serve.limits import Limits
from ray_l4.serve.server import bound_socket

with bound_socket("127.0.0.1", 0) as bound:
    port = bound.getsockname()[1]
with ExitStack() as held:
    changes = []
    if "joined" in sys.argv:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
        held.callback(cluster.shutdown)
        held.callback(ray.shutdown)
        changes = [f"ray.address={cluster.address}"]
    held.enter_context(replicas._connected(load_cluster("laptop", changes), 2))
    replicas._start_proxy("127.0.0.1", port, Limits())
    found = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60)
    print(found.status_code, found.headers.get("retry-after"), found.json()["error"]["code"])
"""


@pytest.mark.ray
@pytest.mark.parametrize("cluster", ["own", "joined"])
def test_the_proxy_of_a_cluster_has_it_before_there_is_an_app(cluster: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE")}
    ended = subprocess.run(
        [sys.executable, "-c", _PROXY_ALONE, cluster], capture_output=True, text=True, timeout=240, env=environment
    )
    assert ended.stdout.split() == ["503", "1", "not_ready"], ended.stderr
