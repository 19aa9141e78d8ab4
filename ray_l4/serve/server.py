"""The service in one process: the app in one thread, the model in another."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
import time
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ray_l4.errors import ConfigError
from ray_l4.serve.limits import Limits
from ray_l4.serve.problems import RequestError

_KEEP_ALIVE = 30
"""Seconds that a connection without a request is kept."""
_BACKLOG = 1024
_SPARE_FILES = 256
_NAP = 0.02


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that has an address and does not listen yet. Raises ConfigError if the address is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--host {host} --port {port}: cannot be served ({why}). Give another one, or 0 for any."
        ) from error
    return bound


class Server:
    """An app that is served by a thread of this process."""

    def __init__(self, app: FastAPI, bound: socket.socket, limits: Limits) -> None:
        """Begin to listen at the address of a socket."""
        _allow_files(2 * limits.connections + _SPARE_FILES)
        config = uvicorn.Config(
            app,
            http=_bounded(limits.connections),
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=round(limits.stop_seconds),
        )
        self._limits = limits
        host, port = bound.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._server = uvicorn.Server(config)
        # Not Thread.join: after a KeyboardInterrupt in it, Python 3.11 takes a running thread for ended.
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(bound,), name="http", daemon=True).start()

    def _run(self, bound: socket.socket) -> None:
        try:
            self._server.run([bound])
        finally:
            self._ended.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the server ends, for so long at most; returns whether it has. A signal interrupts it."""
        return self._ended.wait(seconds)

    def wait_until_started(self, seconds: float) -> bool:
        """Wait until it answers, for so long at most; returns whether it does."""
        deadline = time.monotonic() + seconds
        while not self._server.started and not self._ended.is_set() and time.monotonic() < deadline:
            time.sleep(_NAP)
        return bool(self._server.started)

    def stop(self) -> None:
        """Take no more connections, and wait for the requests under way, within ``limits.stop_seconds``."""
        self._server.should_exit = True
        self.wait(2 * self._limits.stop_seconds + 1)


def _bounded(most: int) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a limit to connections, and to the time until one's first request."""

    class Bounded(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.write(_refusal(most))
                transport.close()
            else:
                self.loop.call_later(_KEEP_ALIVE, self._close_if_silent)

        def _close_if_silent(self) -> None:
            if self.cycle is None:
                self.timeout_keep_alive_handler()

    return Bounded


def _refusal(most: int) -> bytes:
    error = RequestError(503, f"{most} connections are open, as many as may; try again later", "too_many_connections")
    body = bytes(error.response().body)
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _allow_files(wanted: int) -> None:
    """Let this process open as many files as its connections need, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
