"""The evaluators of a run: started, replaced and ended. ``WorkQueue`` waits for them, and notices their loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import overload

from ray_l4.cluster.handles import EvaluatorHandle

MOST_DEATHS = 3
"""Deaths of one evaluator at its start, one after the other, or of evaluators at one job, before the run ends."""

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

    def replace(self, index: int, why: str) -> None:
        """End an evaluator, if it still exists, and start another in its place without waiting for it."""
        assert self._start is not None, "evaluators of one process are not replaced"
        log.warning("evaluator %d is replaced: %s", index, why)
        self._handles[index].end()
        self._handles[index] = self._start(index)

    def end(self) -> None:
        """End all evaluators."""
        for handle in self._handles:
            handle.end()
