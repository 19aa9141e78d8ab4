"""Scores of every task while the stream is learned (L4, Figures 5 and 6; L2KD, Figures 3 to 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import Statistic, statistic
from ray_l4.report.caption import setting, title
from ray_l4.report.figures.style import GREY, add_legend, draw_band, mark_stages, new_figure, panels, styles
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.results import Results
from ray_l4.report.run_result import NO_ORDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = (2.9, 2.6)
"""Width and height in inches."""


def curve(runs: Sequence[FinishedRun], task: str, student: int) -> list[tuple[float, Statistic]]:
    """Return statistics of a task's score over the runs of a variant, at every scored checkpoint.

    Positions are in stages: epoch e of E in stage i (from 0) is at i + e / E.
    """
    scores: dict[float, list[float]] = {}
    for run in runs:
        for (stage, epoch), values in run.trajectory(student).items():
            if task in values:
                scores.setdefault(stage + epoch / run.epochs[stage], []).append(values[task])
    found = ((position, statistic(values)) for position, values in sorted(scores.items()))
    return [(position, value) for position, value in found if value]


def draw(results: Results, student: int) -> Figure:
    """Draw a row of panels for each order, a panel for each task. Raises ConfigError if no run has an order."""
    orders = {order: runs for order, runs in results.by_order().items() if order != NO_ORDER}
    if not orders:
        raise ConfigError("learning curves need runs that learn one task after another; there is none")
    width, height = PANEL[0] * len(results.tasks) + 0.5, PANEL[1] * len(orders) + 1.2
    figure = new_figure(
        width,
        height,
        title(results, "learning curves: a panel for each task, shaded while it is learned"),
        setting(results),
    )
    look = styles(results.variants())
    rows = panels(figure, list(orders), results.tasks)
    for order, runs in orders.items():
        learned = runs[0].learned
        for axes, task in zip(rows[order], results.tasks, strict=True):
            for stage in (stage for stage, tasks in enumerate(learned) if task in tasks):
                axes.axvspan(stage, stage + 1, color=GREY, alpha=0.25, linewidth=0, zorder=0)
            for variant in dict.fromkeys(run.variant for run in runs):
                mine = [run for run in runs if run.variant == variant and student in run.students]
                draw_band(axes, curve(mine, task, student), look[variant], variant, floor=0.0)
            mark_stages(axes, runs[0].stages)
        rows[order][0].set_ylim(bottom=0)  # after all curves: the panels of a row share it
        rows[order][0].set_ylabel("score (%)")
    add_legend(figure, [axes for row in rows.values() for axes in row])
    return figure
