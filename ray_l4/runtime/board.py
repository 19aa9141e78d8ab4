"""Curves for TensorBoard. Its time axis counts training steps over all stages, across resumes."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ray_l4.exchange.loop import StepFigures
from ray_l4.store.run_directory import Cell

_CURVES = ("loss", "nll_qa", "kd_qa", "nll_lm", "kd_lm", "lr", "grad_norm")


class Board:
    """The event files of a run."""

    def __init__(self, folder: Path, steps_before: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=steps_before)
        self._step = steps_before

    def step(self, figures: StepFigures) -> None:
        """One more step of training, with the figures of every student."""
        for student, values in figures.items():
            for name in _CURVES:
                if name in values:
                    self._writer.add_scalar(f"{name}/student-{student}", values[name], self._step)
        self._step += 1

    def score(self, cell: Cell, value: float) -> None:
        """A score, at the step at which it arrived."""
        self._writer.add_scalar(f"score/{cell.task}/student-{cell.student}", value, self._step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
