"""Looks at a live service every second: whether it answers and learns, what it serves, and its memory."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from analysis.live_load.processes import COMMAND, ServiceProcess

INTERVAL = 1.0
SETTLED = 5.0
"""Seconds after which a task that one replica has learned is asked: the others learn of a new stage by themselves."""


@dataclass(frozen=True)
class Sample:
    """A service at one moment, in seconds since 1970."""

    at: float
    answers: bool
    learning: bool
    stage: int | None
    """The stage that answers."""
    pid: int | None
    memory: dict[str, float]
    """Resident memory in MB."""


class Watch:
    """Samples of a service, until it is cancelled."""

    def __init__(self, address: str, process: ServiceProcess) -> None:
        """``process``: whose memory is noted, and below which learning is seen."""
        self._http = httpx.AsyncClient(base_url=address, timeout=10.0, trust_env=False)
        self._process = process
        self.samples: list[Sample] = []
        self.overview: dict[str, Any] = {}
        """The last overview that was had."""
        self._since: dict[str, float] = {}
        """When each task was first seen to be served, by the monotonic clock."""
        self._seen = asyncio.Event()

    @property
    def learning(self) -> bool:
        """Whether it learned when it was last looked at."""
        return bool(self.samples) and self.samples[-1].learning

    @property
    def model(self) -> str:
        """Name of the run's model."""
        return str(self.overview["serving"]["model"])

    @property
    def tasks(self) -> list[str]:
        """The tasks that the models which answer have learned."""
        now, first = time.monotonic(), min(self._since.values())
        known = self.overview["serving"]["tasks"]
        return [task for task in known if self._since[task] == first or now - self._since[task] >= SETTLED]

    async def ready(self, seconds: float) -> None:
        """Wait for the first overview of a service with a model. Raises TimeoutError."""
        await asyncio.wait_for(self._seen.wait(), seconds)

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(INTERVAL)
        finally:
            await self._http.aclose()

    async def _look(self) -> None:
        at, answers = time.time(), False
        try:
            found = (await self._http.get("/v1/overview")).raise_for_status().json()
            if found["serving"] is not None:
                self.overview, answers, now = found, True, time.monotonic()
                self._since = {task: self._since.get(task, now) for task in found["serving"]["tasks"]}
                self._seen.set()
        except httpx.HTTPError:  # it is noted as not answering
            pass
        going_on = self.overview.get("learning") or {}
        learning = bool(self._process.of_kind(COMMAND)) if self._process.pid else bool(going_on.get("running"))
        stage = self.overview["serving"]["stage"] if answers else None
        self.samples.append(Sample(at, answers, learning, stage, self._process.pid, self._process.memory()))


@dataclass
class Story:
    """What happened, in lines that are printed as they come."""

    began: float = field(default_factory=time.time)
    lines: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        """Tell what has just happened."""
        self.lines.append(f"{time.time() - self.began:5.0f} s  {line}")
        print(self.lines[-1], flush=True)
