"""A student that learns nothing and fails when it is told to. Its actor loads nothing that takes time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import ray

from ray_l4.errors import PeerError

FENCE = 5

DIE = "die"
"""In place of an error: the process of the worker ends."""

HANG = "hang"
"""In place of an error: the call takes longer than anyone waits."""


class StandIn:
    """One rank of a student, with the calls of ``workers.student.Student``.

    ``forward`` publishes ``10 * number + step``, and ``backward`` adds up what the teachers published. Like the real
    student, it refuses ``backward`` for a step that it has not forwarded.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.done: list[tuple[str, int]] = []
        """Calls for a step that succeeded, with the step."""
        self._failures: dict[tuple[str, int], Any] = {}
        self._under_way: int | None = None

    def fail(self, method: str, error: BaseException | str, step: int = 0) -> None:
        """Fail this call from now on, for a call that belongs to a step only in that step."""
        self._failures[method, step] = error

    def recover(self) -> None:
        """Fail no more, and forget all steps."""
        self._failures, self._under_way, self.done = {}, None, []

    def history(self) -> list[tuple[str, int]]:
        """Return ``done``; attributes of actors cannot be read."""
        return self.done

    def ready(self) -> None:
        self._work("ready")

    def begin(self, fence: int, stage: int, tokens: Any, memory: Any = None) -> list[int]:
        self._work("begin")
        return [1]

    def forward(self, fence: int, step: int, readers: Sequence[int] = ()) -> int:
        self._work("forward", step)
        self._under_way = step
        self.done.append(("forward", step))
        return 10 * self.number + step

    def predict(
        self, fence: int, step: int, student: int, readers: Sequence[int], at_once: bool, asked: int | None = None
    ) -> int:
        self._work("predict", step)
        self.done.append(("predict", step))
        return 10 * self.number + step

    def backward(self, fence: int, step: int, own: int, *teachers: int) -> dict[str, float]:
        self._work("backward", step)
        if self._under_way != step:
            raise PeerError(f"student {self.number}, step {step}: backward was called before forward")
        assert own == 10 * self.number + step
        self._under_way = None
        self.done.append(("backward", step))
        return {"sum": sum(teachers)}

    @ray.method(num_returns=2)
    def advance(
        self, fence: int, step: int, readers: Sequence[int], own: int, *teachers: int
    ) -> tuple[dict[str, float], int]:
        return self.backward(fence, step, own, *teachers), self.forward(fence, step + 1, readers)

    def weights(self) -> str:
        self._work("weights")
        return f"weights {self.number}"

    def consolidate(self) -> str:
        self._work("consolidate")
        return f"guard {self.number}"

    def _work(self, method: str, step: int = 0) -> None:
        failure = self._failures.get((method, step))
        if failure == DIE:
            os._exit(1)
        if failure == HANG:
            time.sleep(60)
        if isinstance(failure, BaseException):
            raise failure
