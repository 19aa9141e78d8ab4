"""Removes checkpoints that ``checkpoint.keep`` does not keep and that nothing needs any more."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray_l4.run.context import RunContext
from ray_l4.run.scoring import Scoring
from ray_l4.store.atomic import matching, remove_if_there
from ray_l4.store.promotion import needed_stages

_PLACE = re.compile(r"stage-(\d+)/epoch-(\d+)/student-(\d+)")

Place = tuple[int, int, int]
"""Stage, epoch and student of a checkpoint."""


class Retention:
    """Applies ``checkpoint.keep``. Checkpoints are removed by the thread that writes them, so never while it does."""

    def __init__(self, context: RunContext, scoring: Scoring, disk: ThreadPoolExecutor) -> None:
        self._context = context
        self._scoring = scoring
        self._disk = disk
        # A copy of the run may still be under way: it names the stages that were done when it began.
        self._stages_needed = 1 if context.cluster.storage_path is None else 2

    def apply(self, stages_done: int, under_way: Collection[tuple[int, int]] = ()) -> None:
        """Remove what is neither kept nor needed, in the background.

        ``under_way``: the (stage, epoch) that the stage under way may return to.
        """
        newest = self._context.setup.experiment.checkpoint.newest
        if newest is None:
            return
        places = sorted(checkpoints_in(self._context.directory.path))
        results = set(self._results(stages_done))
        pending = self._scoring.pending
        for student in {place[2] for place in places}:
            own = [place for place in places if place[2] == student]
            for place in own[: max(0, len(own) - newest)]:
                if place not in pending and place[:2] not in results and place[:2] not in under_way:
                    self._disk.submit(remove_if_there, self._context.directory.checkpoint(*place))

    def _results(self, stages_done: int) -> Iterator[tuple[int, int]]:
        """Yield the (stage, epoch) of results: of the last finished stage, from which the next one begins; of every
        stage, if each has trained a model of its own; of those that are served, or may be by a decision to come."""
        setup = self._context.setup
        first = 0 if setup.method.kind.independent else max(0, stages_done - self._stages_needed)
        for stage in sorted({*range(first, stages_done), *needed_stages(self._context.directory)}):
            yield stage, self._context.directory.result_epoch(stage, setup.experiment.epochs_of(stage))


def checkpoints_in(run: Path) -> Iterator[Place]:
    """Yield the checkpoints of a run directory."""
    folder = run / "checkpoints"
    for path in matching(folder, "stage-*/epoch-*/student-*"):
        match = _PLACE.fullmatch(path.relative_to(folder).as_posix())
        if match:
            yield int(match[1]), int(match[2]), int(match[3])
