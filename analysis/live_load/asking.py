"""A client of a live service: asks, tells what is right, and tries again what failed, as clients do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from analysis.live_load.questions import Question

OK, REFUSED, CUT, LATE = "ok", "no connection", "cut off", "no answer in time"
ROUTES = ("answers", "openai")
_TIMEOUT = 150.0
"""Seconds for an answer; more than the service gives a request."""
_NAPS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further attempt, the last of them again and again, as OpenAI's client waits."""
_AGAIN = frozenset({408, 409, 429})


@dataclass(frozen=True)
class Asked:
    """A question that was asked, and what came of it. Times are seconds since 1970."""

    route: str
    task: str
    sample_id: str
    due: float
    """When it was to be sent, from which its latency counts."""
    ended: float
    first: str
    """What came of the first attempt: ``ok``, or why it failed."""
    attempts: int
    answered: bool
    stage: int | None = None
    student: int | None = None
    answer: str = ""

    @property
    def seconds(self) -> float:
        """Latency, all attempts included."""
        return self.ended - self.due

    @property
    def healed(self) -> bool:
        """Whether a further attempt was answered after the first had failed."""
        return self.answered and self.first != OK


@dataclass(frozen=True)
class Tried:
    """What came of a request, all attempts included."""

    first: str
    attempts: int
    value: Any | None
    """None if it failed for good."""


async def persist(call: Callable[[], Awaitable[Any]], patience: float) -> Tried:
    """Call until it is answered, for ``patience`` seconds at most; what cannot be healed is not tried again."""
    until, attempts, first = time.monotonic() + patience, 0, OK
    while True:
        attempts += 1
        kind, again, value = await _attempt(call)
        first = kind if attempts == 1 else first
        nap = _NAPS[min(attempts, len(_NAPS)) - 1]
        if kind == OK or not again or time.monotonic() + nap > until:
            return Tried(first, attempts, value)
        await asyncio.sleep(nap)


async def _attempt(call: Callable[[], Awaitable[Any]]) -> tuple[str, bool, Any | None]:
    """Return what came of one attempt, whether another one is worth while, and its value."""
    try:
        return OK, False, await call()
    except Exception as error:  # the two libraries have unrelated classes; what is not theirs is raised again
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return f"status {status}", status >= 500 or status in _AGAIN, None
        # OpenAI's error has that of its transport as the cause, whose classes are those of httpx under another module.
        kinds = {kind.__name__ for one in (error, error.__cause__) for kind in type(one).__mro__}
        if "TimeoutException" in kinds:
            return LATE, False, None
        if "ConnectError" in kinds:
            return REFUSED, True, None
        if "TransportError" in kinds:
            return CUT, True, None
        raise


class Client:
    """Asks one service by its own route and by OpenAI's library, each request with further attempts."""

    def __init__(self, address: str, patience: float, routes: tuple[str, ...] = ROUTES) -> None:
        """``patience``: seconds for which a request is tried again. ``routes``: used in turn."""
        self.http = httpx.AsyncClient(base_url=address, timeout=_TIMEOUT, trust_env=False)
        self.routes, self._patience = routes, patience
        self._openai: Any = None
        if "openai" in routes:
            import openai

            self._openai = openai.AsyncOpenAI(
                base_url=f"{address}/v1",
                api_key="none",
                max_retries=0,  # attempts are counted here
                timeout=_TIMEOUT,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
            )

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()
        if self._openai is not None:
            await self._openai.close()

    async def ask(self, question: Question, route: str, model: str, due: float) -> Asked:
        """Ask a question. ``model``: name of the run's model, for OpenAI's route."""
        call = self._by_openai if route == "openai" else self._by_answers
        tried = await persist(lambda: call(question, model), self._patience)
        stage, student, answer = tried.value or (None, None, "")
        return Asked(
            *(route, question.task, question.sample_id, due, time.time(), tried.first, tried.attempts),
            *(tried.value is not None, stage, student, answer),
        )

    async def post(self, path: str, body: dict[str, Any]) -> Tried:
        """Post JSON; the value is the reply."""

        async def call() -> Any:
            return (await self.http.post(path, json=body)).raise_for_status().json()

        return await persist(call, self._patience)

    async def _by_answers(self, asked: Question, model: str) -> tuple[int, int, str]:
        body = {"task": asked.task, "context": asked.context, "question": asked.question}
        found = (await self.http.post("/v1/answers", json=body)).raise_for_status().json()
        return found["stage"], found["student"], found["answer"]

    async def _by_openai(self, asked: Question, model: str) -> tuple[int, int, str]:
        turns = [{"role": "user", "content": text} for text in (asked.context, asked.question)]
        found = await self._openai.chat.completions.create(model=f"{model}/{asked.task}", messages=turns)
        stage, student = (int(part.rpartition("-")[2]) for part in found.system_fingerprint.split("."))
        return stage, student, found.choices[0].message.content
