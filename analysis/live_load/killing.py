"""Kills -9 at random moments: the service, a replica, the learning command, and one of its students."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from analysis.live_load.processes import COMMAND, REPLICA, SERVICE, STUDENT, ServiceProcess, kill
from analysis.live_load.watching import Story, Watch

_KINDS = (STUDENT, SERVICE, COMMAND)
_SPREAD = (0.5, 1.5)
"""Least and most seconds from one kill to the next, as shares of their mean."""
_NAP = 0.2


class Killer:
    """Kills until it is cancelled: every kind in turn, each turn in an order of its own, as soon as there is one."""

    def __init__(self, process: ServiceProcess, watch: Watch, seed: int, every: float, story: Story) -> None:
        """``process``: a service that can be started again. ``every``: mean seconds from one kill to the next."""
        self._every = every
        self._process, self._watch, self._story = process, watch, story
        self._random = random.Random(seed)
        self._kinds = (*_KINDS, *([REPLICA] if process.of_kind(REPLICA) else []))
        self.killed: list[tuple[float, str]] = []
        """When, in seconds since the story began, and what."""

    async def run(self) -> None:
        """Kill until cancelled."""
        due: list[str] = []
        while True:
            await asyncio.sleep(self._every * self._random.uniform(*_SPREAD))
            due = due or self._random.sample(self._kinds, len(self._kinds))
            while (kind := next((one for one in due if self._process.of_kind(one)), None)) is None:
                await asyncio.sleep(_NAP)
            due.remove(kind)
            self._kill(kind, self._process.of_kind(kind))

    def _kill(self, kind: str, pids: Sequence[int]) -> None:
        if kind == SERVICE:
            self._process.kill()
            self._process.start()
        elif not kill(self._random.choice(pids)):
            return  # it has just ended
        self.killed.append((self._watch.samples[-1].at - self._story.began, kind))
        self._story.tell(f"killed -9: {kind}{', and started it again' if kind == SERVICE else ''}")
