"""A steady stream of questions: each is sent when it is due, whether or not earlier ones were answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence

from analysis.live_load.asking import Asked, Client
from analysis.live_load.questions import Question
from analysis.live_load.watching import Watch


class Load:
    """Asks the test sets of the tasks that are served, one question of each in turn, until it is cancelled."""

    def __init__(self, client: Client, watch: Watch, questions: Mapping[str, Sequence[Question]], rate: float) -> None:
        """``questions``: by task. ``rate``: questions a second."""
        self._client, self._watch, self._questions, self._interval = client, watch, questions, 1 / rate
        self.asked: list[Asked] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Ask until cancelled."""
        began = time.time()
        routes = itertools.cycle(self._client.routes)
        for number in itertools.count():
            due = began + number * self._interval
            await asyncio.sleep(max(0.0, due - time.time()))
            task = asyncio.create_task(self._ask(number, next(routes), due))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def finish(self) -> None:
        """Wait for the answers that are under way. Raises what one of them has raised."""
        await asyncio.gather(*self._under_way)

    async def _ask(self, number: int, route: str, due: float) -> None:
        known = [task for task in self._watch.tasks if task in self._questions]
        own = self._questions[known[number // len(self._client.routes) % len(known)]]
        self.asked.append(await self._client.ask(own[number % len(own)], route, self._watch.model, due))
