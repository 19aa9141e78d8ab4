"""Curves of a run, for TensorBoard and a tracker. The horizontal axis counts training steps over all stages, across
resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ray_l4.monitor.event_file import EventFile
from ray_l4.monitor.tracking import ScalarWriter
from ray_l4.store.run_directory import Cell, row_name

_CURVES = ("loss", "nll_qa", "kd_qa", "nll_lm", "kd_lm", "lr", "grad_norm")


class Curves:
    """Writes losses and scores to the run's event files, and to its tracker if it has one."""

    def __init__(
        self, folder: Path, steps_before: int, tracker: ScalarWriter | None = None, *, steps_kept: int = 0
    ) -> None:
        """``steps_before``: total steps of the finished stages. ``steps_kept``: steps of the stage under way that
        are not learned again. Events after them are replaced."""
        self._writers: list[ScalarWriter] = [EventFile(folder, purge_step=steps_before + steps_kept)]
        self._writers += [] if tracker is None else [tracker]
        self._stage_start = self._stage_end = self._last_step = steps_before

    def begin_stage(self, num_steps: int) -> None:
        """Begin a stage (or stages that run side by side) of ``num_steps`` steps in total."""
        self._stage_start, self._stage_end = self._stage_end, self._stage_end + num_steps

    def return_to(self, steps_before: int) -> None:
        """Return to the end of an earlier stage, after ``steps_before`` steps in total."""
        self._stage_start = self._stage_end = steps_before

    def restart_stage(self) -> None:
        """Return to the start of the current stage; ``begin_stage`` then begins it again."""
        self._stage_end = self._stage_start

    def log_step(self, step: int, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Write the figures of a step, counted from the start of the stage, by the name of each curve's student."""
        self._last_step = self._stage_start + step
        for name, values in figures.items():
            for curve in _CURVES:
                if curve in values:
                    self._add(f"{curve}/{name}", values[curve], self._last_step)

    def end_stage(self, num_steps: int) -> None:
        """End a stage after ``num_steps`` steps in total, which may be fewer than it began with."""
        self._stage_end = self._stage_start + num_steps

    def log_validation(self, losses: Mapping[str, float]) -> None:
        """Write validation losses at the latest step, by the name of each curve's student."""
        for name, loss in losses.items():
            self._add(f"validation_loss/{name}", loss, self._last_step)

    def log_score(self, cell: Cell, value: float) -> None:
        """Write a score at the latest step."""
        self._add(f"score/{cell.task}/{row_name(cell.student)}", value, self._last_step)

    def log_general(self, cell: Cell, value: float) -> None:
        """Write a perplexity on the general text at the latest step."""
        self._add(f"general_perplexity/student-{cell.student}", value, self._last_step)

    def close(self) -> None:
        """Flush and close all of them."""
        for writer in self._writers:
            writer.close()

    def _add(self, tag: str, value: float, step: int) -> None:
        for writer in self._writers:
            writer.add_scalar(tag, value, step)
