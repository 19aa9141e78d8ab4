"""Final scores against the weight of distillation (L4, Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import AVERAGE, Statistic, scores_of, statistic
from ray_l4.report.caption import setting, title
from ray_l4.report.figures.style import BLACK, Style, add_legend, draw_band, new_figure, panels, styles
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = (5.5, 3.4)
"""Width and height in inches."""


def curve(runs: Sequence[FinishedRun], column: str, student: int) -> list[tuple[float, Statistic]]:
    """Return lambda and statistics over seeds of a column: the final score of a task, or the average."""
    values: dict[float, list[float | None]] = {}
    for run in runs:
        values.setdefault(run.experiment.distillation.weight, []).append(scores_of(run, student)[column])
    found = ((weight, statistic(scores)) for weight, scores in sorted(values.items()))
    return [(weight, value) for weight, value in found if value]


def _varied(results: Results, student: int) -> tuple[str, dict[str, list[FinishedRun]]]:
    """Return the one method whose distillation weight differs between runs, and its runs of each order."""
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in results.runs:
        if student in run.students and run.learns_from_others:
            groups.setdefault((run.method, run.order), []).append(run)
    varied = {key: runs for key, runs in groups.items() if len({r.experiment.distillation.weight for r in runs}) > 1}
    methods = sorted({method for method, _ in varied})
    if len(methods) != 1:
        raise ConfigError(
            "a lambda curve needs runs of one method that differ in distillation.weight (a sweep with --grid "
            f"distillation.weight=0,0.2,0.5,1); methods here: {', '.join(methods) or 'none'}"
        )
    return methods[0], {order: runs for (_, order), runs in varied.items()}


def draw(results: Results, student: int) -> Figure:
    """Draw a panel for each order. Raises ConfigError unless runs of exactly one method differ in the weight."""
    method, orders = _varied(results, student)
    subject = title(results, f"{method}: final score against the weight of distillation")
    figure = new_figure(PANEL[0] + 0.8, PANEL[1] * len(orders) + 1.2, subject, setting(results))
    look = {AVERAGE: Style(BLACK, width=2.5), **styles(results.tasks)}
    rows = panels(figure, list(orders), [""])
    for order, (axes,) in rows.items():
        for column in (*results.tasks, AVERAGE):
            draw_band(axes, curve(orders[order], column, student), look[column], column, floor=0.0)
        axes.set_ylabel("score (%)")
        axes.set_xlabel("λ (distillation.weight)")
    add_legend(figure, [row[0] for row in rows.values()])
    return figure
