"""The evaluators of a run: started, watched, replaced and ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import overload

from ray_l4.cluster.handles import EvaluatorHandle
from ray_l4.cluster.rpc import get
from ray_l4.errors import PeerError, PeerLostError

MOST_DEATHS = 3
"""Deaths of one evaluator at its start, one after the other, or of evaluators at one job, before the run ends."""

_NAP_SECONDS = 0.05

log = logging.getLogger("ray_l4.coordinator")


class Evaluators(Sequence[EvaluatorHandle]):
    """Owns the evaluators of a run. Nothing else replaces or ends them."""

    def __init__(
        self, handles: Sequence[EvaluatorHandle], start: Callable[[int], EvaluatorHandle] | None = None
    ) -> None:
        """``start`` starts an evaluator in place of the one with that index; None in one process, where none dies."""
        self._handles = list(handles)
        self._start = start

    @overload
    def __getitem__(self, index: int) -> EvaluatorHandle: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[EvaluatorHandle]: ...

    def __getitem__(self, index: int | slice) -> EvaluatorHandle | Sequence[EvaluatorHandle]:
        return self._handles[index]

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def replaceable(self) -> bool:
        """Whether an evaluator that is lost can be replaced."""
        return self._start is not None

    def hangs(self, index: int) -> str | None:
        """Return how an evaluator came to a stop although its process exists; None if it is alive as far as known."""
        pulse = self._handles[index].pulse
        if pulse is None or not pulse.hangs():
            return None
        return f"it has shown no sign of life for {pulse.limit:g} s (timeouts.control); at last: {pulse.doing}"

    def replace(self, index: int, why: str) -> None:
        """End an evaluator, if it still exists, and start another in its place without waiting for it."""
        assert self._start is not None, "evaluators of one process are not replaced"
        log.warning("evaluator %d is replaced: %s", index, why)
        self._handles[index].end()
        self._handles[index] = self._start(index)

    def await_start(self, limit: float) -> None:
        """Wait until all are ready; one that dies, hangs or is late (``limit`` seconds) is started again.

        Raises the error of one that fails, PeerError for one that was lost ``MOST_DEATHS`` times.
        """
        starting = {index: (own.ready(), time.monotonic()) for index, own in enumerate(self._handles)}
        deaths = dict.fromkeys(starting, 0)
        while starting:
            for index, (reference, since) in list(starting.items()):
                handle = self._handles[index]
                try:
                    overdue = time.monotonic() - since > limit
                    if handle.rpc.ready([reference]) or overdue:
                        get(handle.rpc, reference, 0 if overdue else limit, f"evaluator {index}, start")
                        del starting[index]
                    elif (why := self.hangs(index)) is not None:
                        raise PeerLostError(f"evaluator {index}, start: {why}")
                except PeerLostError as error:
                    deaths[index] += 1
                    if not self.replaceable:
                        raise
                    if deaths[index] == MOST_DEATHS:
                        raise PeerError(f"{error}; it was started {MOST_DEATHS} times") from error
                    self.replace(index, str(error))
                    starting[index] = self._handles[index].ready(), time.monotonic()
            if starting:
                time.sleep(_NAP_SECONDS)

    def end(self) -> None:
        """End all evaluators."""
        for handle in self._handles:
            handle.end()
