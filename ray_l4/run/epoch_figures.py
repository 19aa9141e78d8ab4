"""The figures of the steps of stages under way, written epoch by epoch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from ray_l4.store.records import write_steps
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.states import State


class EpochFigures:
    """Owns the figures of the epoch under way of every stage.

    An epoch is written when the first figures of a later one arrive. No figures of an earlier one can follow: a step is
    delivered for all students that learned in it, in order.
    """

    def __init__(self, directory: RunDirectory, last_steps: Mapping[int, Sequence[int]]) -> None:
        """``last_steps``: stage -> the last step of each epoch."""
        self._directory = directory
        self._last_steps = last_steps
        self._rows: dict[int, list[dict[str, Any]]] = {stage: [] for stage in last_steps}

    def epoch_of(self, stage: int, step: int) -> int:
        """Return the epoch of a step, from 1."""
        return bisect_left(self._last_steps[stage], step) + 1

    def continue_from(self, state: State) -> None:
        """Take over the figures of a state, which are of the epoch under way."""
        for row in state.figures:
            self._rows.setdefault(row["stage"], []).append(dict(row))

    def add(self, stage: int, step: int, student: int, values: Mapping[str, float]) -> None:
        """Add a student's figures of one step."""
        epoch, rows = self.epoch_of(stage, step), self._rows[stage]
        if rows and rows[-1]["epoch"] != epoch:
            self._write(stage)
        rows.append({"stage": stage, "epoch": epoch, "step": step, "student": student, **values})

    def all(self) -> list[dict[str, Any]]:
        """Return the figures of the epoch under way so far, of all stages."""
        return [row for rows in self._rows.values() for row in rows]

    def finish(self) -> None:
        """Write the epoch under way of every stage: it has ended, or the stage was stopped."""
        for stage in self._rows:
            self._write(stage)

    def _write(self, stage: int) -> None:
        rows = self._rows[stage]
        if rows:  # a stage may have been stopped before
            write_steps(self._directory, stage, rows[-1]["epoch"], rows)
        rows.clear()
