"""Curves for TensorBoard. Its time axis counts training steps over all stages, across resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ray_l4.monitor.event_file import EventFile
from ray_l4.store.run_directory import Cell

_CURVES = ("loss", "nll_qa", "kd_qa", "nll_lm", "kd_lm", "lr", "grad_norm")


class Board:
    """The event files of a run."""

    def __init__(self, folder: Path, steps_before: int) -> None:
        """``steps_before``: those of all finished stages; curves of a stage that is learned again are replaced."""
        self._writer = EventFile(folder, purge_step=steps_before)
        self._first, self._after = 0, steps_before
        self._now = steps_before

    def begin(self, num_steps: int) -> None:
        """Stages of so many steps in all begin."""
        self._first, self._after = self._after, self._after + num_steps

    def again(self) -> None:
        """The stages at hand begin anew."""
        self._after = self._first

    def step(self, step: int, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Figures of a step, counted from the beginning of the stages at hand, by the name of who learned in it."""
        self._now = self._first + step
        for learner, values in figures.items():
            for name in _CURVES:
                if name in values:
                    self._writer.add_scalar(f"{name}/{learner}", values[name], self._now)

    def score(self, cell: Cell, value: float) -> None:
        """A score, at the step at which it arrived."""
        self._writer.add_scalar(f"score/{cell.task}/student-{cell.student}", value, self._now)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
