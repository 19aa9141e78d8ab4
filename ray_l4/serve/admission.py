"""What every request passes first: who sends it, how large it is, how often, how long; and what is counted of it."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_l4.serve.access import refuse_other_sites
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.problems import RequestError

DEADLINE = "ray_l4.deadline"
"""Key of a request's scope: the time of the event loop at which it is given up."""
OPEN_PATHS = ("/healthz", "/")
"""Answered without a key: whether the service works, and the page, which holds nothing of the run."""
_UNCOUNTED = ("/healthz", "/metrics")
"""Not limited in rate: those who watch the service."""
_MOST_CLIENTS = 4096
_MINUTE = 60.0
_GRACE = 5.0
"""Seconds after the limit in which a route may still say that it was too slow."""


@dataclass
class Rate:
    """How many requests each client may still send: a bucket that fills up within a minute."""

    per_minute: int
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, client: str) -> float:
        """Count a request; returns the seconds after which one more would be allowed, 0 if it is now."""
        now = time.monotonic()
        left, seen = self._buckets.pop(client, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - seen) * self.per_minute / _MINUTE)
        wait = 0.0 if left >= 1 else (1 - left) * _MINUTE / self.per_minute
        self._buckets[client] = (left if wait else left - 1, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return wait


class Admission:
    """Middleware: refuses what is not allowed, and counts everything."""

    def __init__(self, app: ASGIApp, limits: Limits, meter: Meter, keys: Collection[str] = ()) -> None:
        """``keys``: API keys, one of which a request must have; without any, only this machine is answered."""
        self._app, self._limits, self._meter = app, limits, meter
        self._keys = [key.encode() for key in keys]
        self._rate = Rate(limits.per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, code = time.perf_counter(), 500
        started = False

        async def sent(message: Message) -> None:
            nonlocal code, started
            if message["type"] == "http.response.start":
                code, started = message["status"], True
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        scope[DEADLINE] = asyncio.get_running_loop().time() + self._limits.request_seconds
        self._meter.in_progress.inc()
        try:
            self._check(scope)
            async with asyncio.timeout(self._limits.request_seconds + _GRACE):
                await self._app(scope, self._counted(receive), sent)
        except RequestError as error:
            await error.response()(scope, receive, sent)
        except TimeoutError:  # a client that neither sends its request nor reads the answer
            code = 504
            if not started:
                await RequestError(504, "the request took too long", "timeout").response()(scope, receive, sent)
        finally:
            self._meter.in_progress.dec()
            route = getattr(scope.get("route"), "path", "none")
            self._meter.requests.labels(route, scope["method"] if route != "none" else "any", str(code)).inc()
            self._meter.seconds.labels(route).observe(time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        client = (scope.get("client") or ("unknown",))[0]
        refuse_other_sites(headers, open_to_all=bool(self._keys))
        if self._keys and scope["path"] not in OPEN_PATHS:
            number = self._key_of(headers)
            if number is None:  # whoever tries keys is slowed down, whatever the path
                self._count(client)
                message = "an API key is missing or wrong; expected the header Authorization: Bearer KEY"
                raise RequestError(401, message, "invalid_api_key")
            client = f"key {number}"
        if scope["path"] not in _UNCOUNTED:
            self._count(client)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise self._too_large()

    def _count(self, client: str) -> None:
        """Count a request of a client. Raises RequestError if it has sent too many."""
        wait = self._rate.take(client)
        if wait:
            message = f"more than {self._limits.per_minute} requests in a minute; wait {wait:.1f} s"
            raise RequestError(429, message, "rate_limit_exceeded", retry_after=max(1, round(wait)))

    def _key_of(self, headers: Headers) -> int | None:
        """Return the number of the key that a request has; None if it has none of them."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        found = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        return found.index(True) if scheme.lower() == "bearer" and any(found) else None

    def _counted(self, receive: Receive) -> Receive:
        """Return ``receive`` with a limit to the bytes of the body."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limits.body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> RequestError:
        error = RequestError(413, f"the body has more than {self._limits.body_bytes:,} bytes", "request_too_large")
        error.headers["Connection"] = "close"  # the rest of the body is not read
        return error
