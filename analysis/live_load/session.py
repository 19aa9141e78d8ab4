"""A session with a live service: questions at a steady rate, users who teach, faults, and the referee's account."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.live_load import on_disk, referee
from analysis.live_load.account import Account
from analysis.live_load.asking import ROUTES, Asked, Client
from analysis.live_load.killing import Killer
from analysis.live_load.load import Load
from analysis.live_load.processes import ServiceProcess
from analysis.live_load.questions import Lesson, questions_of
from analysis.live_load.teaching import Users
from analysis.live_load.watching import Story, Watch
from ray_l4.errors import RayL4Error
from ray_l4.store.promotion import decisions
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.registry import TASKS

_BEGIN = 120.0
"""Seconds for a service to answer, and for a stage to begin."""


@dataclass(frozen=True)
class SessionOptions:
    """What a session is to do."""

    address: str
    run: Path
    rate: float = 4.0
    """Questions a second."""
    corrections: Sequence[Lesson] = ()
    new: Sequence[Lesson] = ()
    minutes: float = 0.0
    """Shortest length; the users go on correcting until then."""
    most_minutes: float = 4.0
    """Minutes within which what was sent has to be learned."""
    quiet: float = 10.0
    """Seconds at the start, and after each round of learning, in which nobody teaches."""
    patience: float = 90.0
    """Seconds for which a request is tried again."""
    kills: bool = False
    kill_every: float = 45.0
    """Mean seconds from one kill to the next."""
    seed: int = 0
    routes: tuple[str, ...] = ROUTES


async def session(options: SessionOptions, process: ServiceProcess) -> Account:
    """Hold a session; what goes wrong in it is in the account.

    Raises TimeoutError if the service never answers, RunDirectoryError if there is no run.
    """
    story, watch = Story(), Watch(options.address, process)
    watching = asyncio.create_task(watch.run())
    client = Client(options.address, options.patience, options.routes)
    try:
        await watch.ready(_BEGIN)
        run = RunDirectory.open(options.run)
        return await _Session(options, process, story, watch, client, run).hold()
    finally:
        await _cancel(watching)
        await client.close()


class _Session:
    """The parts of a session."""

    def __init__(
        self,
        options: SessionOptions,
        process: ServiceProcess,
        story: Story,
        watch: Watch,
        client: Client,
        run: RunDirectory,
    ) -> None:
        self._options, self._process, self._story, self._watch = options, process, story, watch
        self._run, self._before = run, _scores(watch)
        self._first = len(on_disk.stage_names(run))
        seed = run.experiment().data.seed
        sources = {lesson.task: lesson.source for lesson in options.new}
        sources |= {task: task for task in run.experiment().tasks if task in TASKS}
        questions = {task: questions_of(task, source, seed) for task, source in sources.items()}
        self._load = Load(client, watch, questions, options.rate)
        self._users = Users(client, watch, run, seed, story)
        self._killer = Killer(process, watch, options.seed, options.kill_every, story) if options.kills else None

    async def hold(self) -> Account:
        self._story.tell(f"asking {self._options.rate:g} questions a second, about {', '.join(self._watch.tasks)}")
        beside = [asyncio.create_task(self._load.run()), asyncio.create_task(self._narrate())]
        if self._killer is not None:
            beside.append(asyncio.create_task(self._kill(self._killer)))
        trouble = ""
        try:
            await _first_to_end(self._teach(), beside)
        except RayL4Error as error:
            trouble = str(error)
        finally:
            for one in beside:
                await _cancel(one)
            await self._load.finish()
        return self._account(trouble)

    async def _teach(self) -> None:
        began, options = time.monotonic(), self._options
        await asyncio.sleep(options.quiet)
        number = 0
        while number == 0 or time.monotonic() - began < 60 * options.minutes:
            if options.corrections:
                await self._users.correct(options.corrections[number % len(options.corrections)])
                await self._users.until_learning(_BEGIN)
            for lesson in options.new if number == 0 else ():
                await self._users.teach(lesson)
            await self._users.until_settled(60 * options.most_minutes)
            await asyncio.sleep(options.quiet)
            number += 1

    async def _kill(self, killer: Killer) -> None:
        """Kill for as long as the session is to last; what was sent is then learned in peace."""
        with suppress(TimeoutError):
            await asyncio.wait_for(killer.run(), 60 * self._options.minutes)
        await asyncio.Event().wait()  # until it is cancelled: what ends by itself ends the session

    async def _narrate(self) -> None:
        """Tell what the gate decides."""
        told = len(decisions(self._run))
        while True:
            for decision in decisions(self._run)[told:]:
                name = on_disk.stage_names(self._run)[decision.stage]
                said = "served from now on" if decision.promoted else "learned, and not served"
                self._story.tell(f"stage {decision.stage} ({name}) is {said}: {decision.why}")
                told += 1
            await asyncio.sleep(0.5)

    def _account(self, trouble: str) -> Account:
        run, users = self._run, self._users
        asked = sorted([*self._load.asked, *users.asked], key=lambda one: one.due)
        places = {
            (one.stage, one.student, one.task)
            for one in asked
            if one.stage is not None and one.student is not None and one.stage < run.state().stages_done
        }
        scored = {place: on_disk.predictions(run, *place) for place in places}
        last = {decision.stage: decision for decision in decisions(run)}
        names = list(enumerate(on_disk.stage_names(run)))[self._first :]
        after = _scores(self._watch)
        return Account(
            asked=asked,
            steady=self._load.asked,
            told=users.told,
            samples=self._watch.samples,
            bursts=users.bursts,
            scores={task: (self._before.get(task), after[task]) for task in after},
            stages={
                name: (last[stage].promoted, last[stage].why) if stage in last else (None, "") for stage, name in names
            },
            wrong_stage=referee.wrong_stage(asked, on_disk.promotions(run)),
            stepped_back=referee.stepped_back(asked),
            mixed=referee.mixed(asked, scored),
            compared=_compared(asked, scored),
            kept={
                task: referee.kept(
                    count, users.acknowledged[task], on_disk.stored(run, task), on_disk.learned(run, task)
                )
                for task, count in users.sent.items()
            },
            killed=self._killer.killed if self._killer else [],
            lines=self._story.lines,
            trouble=trouble,
        )


def _compared(asked: Sequence[Asked], scored: dict[Any, dict[str, str]]) -> int:
    return sum(one.sample_id in scored.get((one.stage, one.student, one.task), {}) for one in asked)


def _scores(watch: Watch) -> dict[str, float | None]:
    """Return the scores of the model that is served, by task."""
    return {task["name"]: task["score"] for task in watch.overview["tasks"]}


async def _first_to_end(work: Coroutine[Any, Any, None], beside: Sequence[asyncio.Task[None]]) -> None:
    """Do ``work`` while others go on; what one of them raises ends it."""
    main = asyncio.create_task(work)
    try:
        await asyncio.wait([main, *beside], return_when=asyncio.FIRST_COMPLETED)
        for one in [main, *beside]:
            if one.done():
                one.result()
    finally:
        await _cancel(main)


async def _cancel(task: asyncio.Task[Any]) -> None:
    """End a task, and wait until it has; raise what it has raised by itself."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
