"""Errors of Ray Serve's own proxy, in OpenAI's format.

Before the app is deployed, and once it is removed, the proxy answers 404 in plain text, which no client tries again.
An environment variable of the proxy's process names a function that returns the middleware Ray Serve adds to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from ray_l4.serve.problems import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:middlewares"}
_OF_RAY = "/-/"
"""Where the proxy's own routes begin."""


def middlewares() -> list[Middleware]:
    """Return what Ray Serve's proxy is to add."""
    return [Middleware(ProxyErrors)]


class ProxyErrors:
    """ASGI middleware that writes errors in plain text, which the app has none of, as OpenAI does."""

    def __init__(self, app: ASGIApp) -> None:
        """``app``: the proxy."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or scope["path"].startswith(_OF_RAY):
            await self._app(scope, receive, send)
            return
        status, text = 0, b""

        async def translated(message: Message) -> None:
            nonlocal status, text
            if message["type"] == "http.response.start" and _is_plain_error(message):
                status = message["status"]
            elif status == 0:
                await send(message)
            else:
                text += message.get("body", b"")
                if not message.get("more_body"):
                    await _error(status, text.decode("utf-8", "replace")).response()(scope, receive, send)

        await self._app(scope, receive, translated)


def _is_plain_error(message: Message) -> bool:
    kind = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
    return message["status"] >= 400 and kind.startswith(b"text/plain")


def _error(status: int, text: str) -> RequestError:
    if status == 404:  # the app has all paths, so it is not there
        return RequestError(503, "the service is starting, or stopping; try again in a moment", "not_ready", None, 1)
    return RequestError(status, text, "proxy", retry_after=1 if status == 503 else None)
