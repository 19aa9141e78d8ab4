"""Scores of every task while the stream is learned (L4, Figures 5 and 6; L2KD, Figures 3 to 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.caption import setting, title
from analysis.figures.style import GREY, add_legend, draw_band, mark_stages, new_figure, panels, styles
from analysis.results import Results, Run
from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import NO_ORDER, Statistic, statistic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = (2.9, 2.6)
"""Inches."""


def curve(runs: Sequence[Run], task: str, student: int) -> list[tuple[float, Statistic]]:
    """Mean scores of a task over the runs of a variant, at every checkpoint that was scored.

    Places are in stages: epoch e of E in stage i (from 0) is at i + e / E.
    """
    scores: dict[float, list[float]] = {}
    for run in runs:
        for (stage, epoch), values in run.trajectory(student).items():
            if task in values:
                scores.setdefault(stage + epoch / run.experiment.training.epochs, []).append(values[task])
    found = ((place, statistic(values)) for place, values in sorted(scores.items()))
    return [(place, value) for place, value in found if value]


def draw(results: Results, student: int) -> Figure:
    """A row of panels for each order, a panel for each task. Raises ConfigError if no run learned tasks in an order."""
    blocks = {block: runs for block, runs in results.blocks().items() if block != NO_ORDER}
    if not blocks:
        raise ConfigError("learning curves need runs that learn one task after another; there is none")
    width, height = PANEL[0] * len(results.tasks) + 0.5, PANEL[1] * len(blocks) + 1.2
    figure = new_figure(
        width,
        height,
        title(results, "learning curves: a panel for each task, shaded while it is learned"),
        setting(results),
    )
    look = styles(results.variants())
    rows = panels(figure, list(blocks), results.tasks)
    for block, runs in blocks.items():
        order = runs[0].tasks
        for axes, task in zip(rows[block], results.tasks, strict=True):
            stage = order.index(task)
            axes.axvspan(stage, stage + 1, color=GREY, alpha=0.25, linewidth=0, zorder=0)
            for variant in dict.fromkeys(run.variant for run in runs):
                mine = [run for run in runs if run.variant == variant and student in run.students()]
                draw_band(axes, curve(mine, task, student), look[variant], variant, floor=0.0)
            mark_stages(axes, order)
        rows[block][0].set_ylim(bottom=0)  # after all curves: the panels of a row share it
        rows[block][0].set_ylabel("score (%)")
    add_legend(figure, [axes for row in rows.values() for axes in row])
    return figure
