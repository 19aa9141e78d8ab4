"""The server under strain: many connections, silent ones, slow ones, huge prompts, clients that leave, and its end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from ray_l4.errors import ConfigError
from ray_l4.serve import server
from ray_l4.serve.server import bound_socket
from ray_l4.store.run_directory import RunDirectory
from tests.serve.serve_fixtures import LIMIT, Served, serving, wait_until

ASKED = {"task": "mini.woz", "context": "a"}


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT)


def request(body: bytes, path: str = "/v1/answers") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def answer(stream: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and the body of the answer on a connection."""
    with stream.makefile("rb") as file:
        status = int(file.readline().split()[1])
        length = 0
        while line := file.readline().strip():
            name, _, value = line.lower().partition(b":")
            length = int(value) if name == b"content-length" else length
        return status, json.loads(file.read(length))


@pytest.fixture
def slow(served: Served) -> Iterator[threading.Event]:
    """Lets the model wait for this event before every step."""
    go_on = threading.Event()
    hook = served.model._loaded.model.register_forward_pre_hook(lambda *given: go_on.wait(LIMIT) and None)
    yield go_on
    go_on.set()
    hook.remove()


def test_a_thousand_connections_at_once_are_all_answered(served: Served) -> None:
    body = json.dumps(ASKED | {"max_tokens": 1}).encode()
    with ExitStack() as stack:
        streams = [stack.enter_context(connected(served.address)) for _ in range(1000)]
        for stream in streams:
            stream.sendall(request(body))
        codes = [answer(stream)[0] for stream in streams]
    assert codes == [200] * 1000
    assert served.post("/v1/answers", ASKED).status_code == 200


def test_a_prompt_of_ten_thousand_tokens_is_refused_and_the_service_goes_on(served: Served) -> None:
    text = "cheap food " * 5000
    assert len(served.model.tokenizer.encode(text)) >= 10_000
    for path, body in (
        ("/v1/answers", ASKED | {"context": text}),
        ("/v1/completions", {"model": served.name, "prompt": text}),
        ("/v1/completions", {"model": f"{served.name}/mini.woz", "prompt": text}),
    ):
        found = served.post(path, body)
        assert found.status_code == 400
        assert found.json()["error"]["code"] == "context_length_exceeded"
    assert served.get("/healthz").status_code == 200


def test_connections_beyond_the_limit_are_told_so(run: RunDirectory) -> None:
    with serving(run.path, {"connections": 3}) as served, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connected(served.address))
        time.sleep(0.1)
        status, body = answer(stack.enter_context(connected(served.address)))
        assert (status, body["error"]["code"]) == (503, "too_many_connections")
        stack.close()
        wait_until(lambda: served.get("/healthz").status_code == 200)


def test_a_connection_that_says_nothing_is_closed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_KEEP_ALIVE", 0.2)
    with serving(run.path) as served, connected(served.address) as silent, connected(served.address) as halting:
        halting.sendall(b"POST /v1/answers HTTP/1.1\r\nHost: loc")
        assert silent.recv(100) == halting.recv(100) == b""


def test_a_request_that_takes_too_long_is_given_up(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_l4.serve.admission._GRACE", 0.2)
    with serving(run.path, {"request_seconds": 0.3}) as served:
        go_on = threading.Event()
        hook = served.model._loaded.model.register_forward_pre_hook(lambda *given: go_on.wait(LIMIT) and None)
        for body in (ASKED, ASKED | {"temperature": 1.0}):
            late = served.post("/v1/answers", body)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        plain = {"model": served.name, "prompt": "a", "stream": True}
        assert served.post("/v1/completions", plain).status_code == 504, "nothing has been sent yet"
        with connected(served.address) as halting:  # its body never comes
            halting.sendall(request(b"{}")[:-1])
            assert answer(halting)[0] == 504
        go_on.set()
        hook.remove()
        assert served.post("/v1/answers", ASKED).status_code == 200


def test_an_error_within_a_stream_is_an_event(run: RunDirectory) -> None:
    body = {"model": run.path.name, "prompt": "a", "max_tokens": 60, "temperature": 2.0}
    with serving(run.path) as served:
        whole = (served.post("/v1/completions", body | {"seed": seed}) for seed in range(50))
        seed = next(n for n, found in enumerate(whole) if found.json()["usage"]["completion_tokens"] == 60)
    with serving(run.path, {"request_seconds": 2.0}) as served:
        calls = 0

        def slower(*given: object) -> None:
            nonlocal calls
            calls += 1
            time.sleep(0.0 if calls < 20 else 2.2)

        hook = served.model._loaded.model.register_forward_pre_hook(slower)
        found = served.post("/v1/completions", body | {"seed": seed, "stream": True})
        hook.remove()
        assert found.status_code == 200
        *_, error, done = [line.removeprefix("data: ") for line in found.text.splitlines() if line]
        assert json.loads(error)["error"]["code"] == "timeout"
        assert done == "[DONE]"


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_place(served: Served, slow: threading.Event, streams: bool) -> None:
    body = {"model": served.name, "prompt": "a", "stream": streams, "max_tokens": 80}
    with connected(served.address) as client:
        client.sendall(request(json.dumps(body).encode(), "/v1/completions"))
        wait_until(lambda: served.model.users == 1)
    slow.set()
    wait_until(lambda: served.model.users == 0)
    assert served.post("/v1/answers", ASKED).status_code == 200


def test_stopping_finishes_what_is_under_way(run: RunDirectory) -> None:
    with serving(run.path) as served, ExitStack() as stack:
        go_on = threading.Event()
        served.model._loaded.model.register_forward_pre_hook(lambda *given: go_on.wait(LIMIT) and None)
        client = stack.enter_context(connected(served.address))
        idle = stack.enter_context(connected(served.address))
        client.sendall(request(json.dumps(ASKED).encode()))
        wait_until(lambda: served.model.users == 1)
        threading.Timer(0.5, go_on.set).start()
        model = served.model
        stopped = time.monotonic()
        served.stop()
        assert answer(client)[0] == 200
        assert idle.recv(10) == b""
        assert not model.generator.is_alive()
        assert time.monotonic() - stopped < 10
        with pytest.raises(httpx.ConnectError):
            served.get("/healthz")


def test_a_route_that_fails_says_so_without_its_secrets(run: RunDirectory) -> None:
    router = APIRouter()

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the password is 1234")

    with serving(run.path, extra=[router]) as served:
        found = served.get("/broken")
        assert found.status_code == 500
        assert found.json()["error"]["type"] == "server_error"
        assert "1234" not in found.text
        assert served.get("/healthz").status_code == 200


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", None), ("203.0.113.7", 0), ("no.such.host.invalid", 0)])
def test_an_address_that_cannot_be_had_is_refused(host: str, port: int | None) -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        number = taken.getsockname()[1] if port is None else port
        with pytest.raises(ConfigError, match=f"--host {host} --port {number}: cannot be served"):
            bound_socket(host, number)
