"""Writes the states of stages under way, and finds the one from which to continue after a failure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ray_l4.cluster.membership import Membership
from ray_l4.cluster.rpc import PerRank
from ray_l4.errors import DamagedError, PeerError
from ray_l4.run.context import RunContext
from ray_l4.run.state_keeper import StateKeeper
from ray_l4.setup.stage_plan import Assignment
from ray_l4.store.atomic import remove_if_there
from ray_l4.store.states import (
    Learning,
    Position,
    State,
    discard_states,
    read_state,
    states,
    write_state,
)

log = logging.getLogger("ray_l4.coordinator")


class States:
    """The states of stages under way: all students after the same steps.

    Students are asked for their state between two steps, and go on while it is written by another thread. Only one
    state is under way at a time.
    """

    def __init__(
        self, context: RunContext, keeper: StateKeeper, membership: Membership, disk: ThreadPoolExecutor
    ) -> None:
        """``disk``: the thread that writes checkpoints. A state is on disk only after the checkpoints before it."""
        self._context = context
        self._keeper = keeper
        self._membership = membership
        self._disk = disk
        self._config = context.setup.experiment.checkpoint
        self._steps = 0
        self._since = time.monotonic()
        self._asked = False
        """Whether the students were asked for a state whose figures are not known yet."""
        self._writing: Future[None] | None = None

    def due(self) -> bool:
        """Count one more step, and return whether a state is to be taken after it.

        Raises RunDirectoryError if the last one could not be written.
        """
        self._steps += 1
        minutes, steps = self._config.every_minutes, self._config.every_steps
        is_due = (steps is not None and self._steps >= steps) or (
            minutes is not None and time.monotonic() - self._since >= 60.0 * minutes
        )
        return is_due and not self._asked and self._is_written()

    def take(self, position: Position) -> Callable[[Sequence[Mapping[str, Any]]], None]:
        """Ask the students at ``position`` for their states.

        Returns a function that takes the figures of the epoch up to ``position``, once they are known, and has the
        state written.
        """
        self._steps, self._since, self._asked = 0, time.monotonic(), True
        fence, students = self._membership.fence, self._membership.students
        asked = {own.slot: students[own.slot].state(fence) for own in position.workers}

        def write(figures: Sequence[Mapping[str, Any]]) -> None:
            self._asked = False
            self._keeper.record_lost(self._membership.lost)
            self._writing = self._disk.submit(self._write, position, list(figures), asked)

        return write

    def finish(self) -> None:
        """Wait until the state under way, if any, is written; give up one that was only asked for.

        Raises RunDirectoryError if it could not be written.
        """
        self._asked = False
        if self._writing is not None:
            self._log_failure(self._writing)
            self._writing = None

    def newest(self, assignments: Sequence[Assignment]) -> State | None:
        """Return the newest state from which these assignments can continue; None to begin with the stage's start.

        A newer one that is damaged or does not fit is removed, with a warning: it would count as the newest for ever.
        Raises RunDirectoryError if one cannot be read.
        """
        self.finish()
        run = self._context.directory
        for folder in states(run, min(own.stage for own in assignments)):
            try:
                state = read_state(folder)
                why = self._unfit(folder, state, assignments)
            except DamagedError as error:
                why = str(error)
            if why is None:
                return state
            self._context.progress.add_event(f"warning: {why} It is removed; the run goes on from an earlier point.")
            self._disk.submit(remove_if_there, folder).result()
        return None

    def discard(self, stage: int) -> None:
        """Remove the states of a finished stage and of earlier ones, in the background."""
        self._disk.submit(discard_states, self._context.directory, stage).add_done_callback(_log_error)

    def _unfit(self, folder: Path, state: State, assignments: Sequence[Assignment]) -> str | None:
        """Return why ``assignments`` cannot continue from a state; None if they can."""
        ranks = self._context.cluster.students.shards_per_student
        if any(len(parts) != ranks for parts in state.parts.values()):
            return f"{folder} was written by students with another number of ranks."
        known = {(own.slot, own.student, own.stage) for own in state.position.workers}
        if not known >= {(own.slot, own.student, own.stage) for own in assignments}:
            return f"{folder} is of other students than those that learn now."
        return None

    def _is_written(self) -> bool:
        if self._writing is not None and not self._writing.done():
            return False
        self.finish()
        return True

    def _write(
        self, position: Position, figures: Sequence[Mapping[str, Any]], asked: Mapping[int, PerRank[np.ndarray]]
    ) -> None:
        limit = self._context.cluster.timeouts.step
        names = {f"student {slot}, state": references for slot, references in asked.items()}
        values = self._membership.students[0].rpc.get_all(names, limit)
        parts = {slot: values[f"student {slot}, state"] for slot in asked}
        newest = write_state(self._context.directory, position, figures, parts)
        discard_states(self._context.directory, position.stage, self._config.states, newest)
        log.info("state of stage %d, epoch %d, %d steps", position.stage, position.epoch, position.num_steps)

    def _log_failure(self, writing: Future[None]) -> None:
        try:
            writing.result()
        except PeerError as error:  # a student is lost, which the step loop notices by itself
            log.warning("no state was written: %s", error)


def position_of(
    epoch: int,
    assignments: Sequence[Assignment],
    next_steps: Mapping[int, int],
    validation: Mapping[str, Sequence[Mapping[str, float]]],
) -> Position:
    """Return the position of ``assignments``. ``next_steps``: slot -> its next step."""
    workers = [Learning(own.slot, own.student, own.stage, next_steps[own.slot]) for own in assignments]
    return Position(epoch, workers, validation)


def _log_error(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        log.warning("states of a finished stage were not removed: %s", error)
