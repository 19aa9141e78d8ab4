"""The users of a live service: they correct answers, teach a new task, and wait until it was learned."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from analysis.live_load.asking import Asked, Client, Tried
from analysis.live_load.on_disk import is_settled
from analysis.live_load.questions import Lesson, Question, fresh
from analysis.live_load.watching import Story, Watch
from ray_l4.errors import ClusterError
from ray_l4.store.run_directory import RunDirectory

AT_ONCE = 32
"""Requests of users at a time."""
_NAP = 0.5


class Users:
    """Users who teach one service."""

    def __init__(self, client: Client, watch: Watch, run: RunDirectory, seed: int, story: Story) -> None:
        """``seed``: of the examples of the run."""
        self._client, self._watch, self._run, self._seed, self._story = client, watch, run, seed, story
        self._room = asyncio.Semaphore(AT_ONCE)
        self._next: Counter[str] = Counter()
        """Number of the next training example that was not used yet, by task."""
        self.asked: list[Asked] = []
        """Questions that were asked to see whether the answer is right."""
        self.bursts: list[tuple[float, float]] = []
        """From when to when they corrected or taught."""
        self.told: list[Tried] = []
        """All other requests."""
        self.sent: Counter[str] = Counter()
        """Examples that were sent, by task."""
        self.acknowledged: dict[str, list[str]] = defaultdict(list)
        """Ids of examples that the service has acknowledged, by task."""

    async def correct(self, lesson: Lesson) -> None:
        """Ask new questions of a task, and tell what would have been right, or that the answer is."""
        questions = self._fresh(lesson)
        with self._burst():
            right = sum(await asyncio.gather(*(self._correct(question) for question in questions)))
        wrong = len(questions) - right
        self._story.tell(f"{lesson.task}: {len(questions)} new questions, {wrong} answers corrected, {right} confirmed")

    async def teach(self, lesson: Lesson) -> None:
        """Begin a new task, and send its examples."""
        questions = self._fresh(lesson)
        shared = {question.question for question in questions}
        body = {"task": lesson.task, "metric": lesson.metric}
        with self._burst():
            self.told.append(
                await self._client.post("/v1/tasks", body | ({"question": shared.pop()} if len(shared) == 1 else {}))
            )
            await asyncio.gather(*(self._tell(question, None) for question in questions))
        self._story.tell(f"{lesson.task}: a new task, {len(questions)} examples sent")

    async def until_learning(self, seconds: float) -> None:
        """Wait until a stage has begun. Raises ClusterError if none does in time."""
        await self._until(lambda: self._watch.learning, seconds, "no stage has begun")

    async def until_settled(self, seconds: float) -> None:
        """Wait until all was learned, judged and, if promoted, is served. Raises ClusterError if not in time."""
        await self._until(lambda: is_settled(self._run) and self._serves(), seconds, "not everything was learned")

    @contextmanager
    def _burst(self) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            self.bursts.append((began, time.time()))

    def _serves(self) -> bool:
        found = self._watch.overview
        return bool(found.get("served")) and found["served"]["stage"] == found["serving"]["stage"]

    async def _until(self, holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until:
                raise ClusterError(f"{otherwise} within {seconds:g} s")
            await asyncio.sleep(_NAP)

    def _fresh(self, lesson: Lesson) -> list[Question]:
        known = self._run.experiment().of_tasks.get(lesson.source)
        first = self._next[lesson.source] or (known.train if known and isinstance(known.train, int) else 0)
        self._next[lesson.source] = first + lesson.count
        return fresh(lesson.task, lesson.source, first, lesson.count, self._seed)

    async def _correct(self, question: Question) -> bool:
        if question.task not in self._watch.tasks:  # a stage that learned it was refused
            await self._tell(question, None)
            return False
        async with self._room:
            asked = await self._client.ask(question, "answers", self._watch.model, time.time())
        self.asked.append(asked)
        await self._tell(question, asked.answer if asked.answered else None)
        return asked.answer.strip() == question.right.strip()

    async def _tell(self, question: Question, given: str | None) -> None:
        body = {"task": question.task, "context": question.context, "question": question.question}
        async with self._room:
            self.sent[question.task] += 1
            tried = await self._client.post("/v1/feedback", body | {"answer": question.right, "given": given})
        self.told.append(tried)
        if tried.value is not None:
            self.acknowledged[question.task].append(tried.value["id"])
