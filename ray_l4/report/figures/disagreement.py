"""Divergence between the predictions of a student and those of its teachers over time, in which collapse is visible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import Statistic, statistic
from ray_l4.report.caption import setting, title
from ray_l4.report.figures.style import BLACK, Style, add_legend, draw_band, mark_stages, new_figure, panels, styles
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADS: Mapping[str, str] = {"kd_qa": "answer tokens", "kd_lm": "all tokens"}
"""Column of the step figures -> the tokens that it is measured on."""
POINTS = 60
"""Largest number of points of a curve in a stage."""
ZERO = 1e-12
"""Largest divergence that is due to rounding: the models predict the same."""
COLLAPSE = "zero in a run: the same predictions (collapse)"
MARKS = 12
"""Approximate number of marks of zeros in a panel."""
Course = dict[float, float]
"""Position in the stream, in stages -> divergence per token."""
PANEL = (4.6, 3.0)
"""Width and height in inches."""


def course(run: FinishedRun, column: str) -> Course:
    """Return the divergence per token, averaged over students and over equal parts of an epoch.

    Positions are in stages, as in the learning curves, so that runs with different numbers of steps coincide.
    """
    if run.steps is None:
        return {}
    known = ~np.isnan(run.steps.columns[column])
    stages, all_epochs, all_steps, all_values = (
        run.steps.columns[name][known] for name in ("stage", "epoch", "step", column)
    )
    found: Course = {}
    for stage, epoch in np.unique(np.stack([stages, all_epochs]), axis=1).T:
        rows = (stages == stage) & (all_epochs == epoch)
        steps, values, epochs = all_steps[rows], all_values[rows], run.epochs[stage]
        parts = max(1, POINTS // epochs)
        first, count = steps.min(), steps.max() - steps.min() + 1
        part = (steps - first) * min(parts, count) // count
        for index in np.unique(part):
            position = stage + (epoch - 1 + (index + 0.5) / min(parts, count)) / epochs
            found[round(float(position), 6)] = float(values[part == index].mean())
    return dict(sorted(found.items()))


def curve(courses: Sequence[Course]) -> list[tuple[float, Statistic]]:
    """Return mean and standard deviation over runs at every position."""
    positions = sorted({position for one in courses for position in one})
    found = ((position, statistic(one.get(position) for one in courses)) for position in positions)
    return [(position, value) for position, value in found if value]


def collapses(courses: Sequence[Course]) -> list[float]:
    """Return the positions at which the divergence of at least one run is zero, which a mean over runs would hide."""
    return sorted({position for one in courses for position, value in one.items() if value <= ZERO})


def draw(results: Results, student: int) -> Figure:
    """Draw a row of panels for each order. ``student`` is not used: a curve is the mean over the students of a run.

    Raises ConfigError if no run has peers or teachers.
    """
    orders: dict[str, list[FinishedRun]] = {}
    for run in results.runs:
        if run.learns_from_others:
            orders.setdefault(run.order, []).append(run)
    if not orders:
        raise ConfigError("the students of these runs have no peers or teachers to disagree with; those of l4 have")
    subject = title(results, "divergence between a student and its peers or teachers")
    size = (PANEL[0] * len(HEADS) + 0.5, PANEL[1] * len(orders) + 1.3)
    figure = new_figure(*size, subject, setting(results))
    rows = panels(figure, list(orders), list(HEADS.values()), share_y=False)
    look = styles(results.variants())
    for order, runs in orders.items():
        for axes, column in zip(rows[order], HEADS, strict=True):
            variants = dict.fromkeys(run.variant for run in runs)
            courses = {name: [course(run, column) for run in runs if run.variant == name] for name in variants}
            _panel(axes, courses, look)
            mark_stages(axes, runs[0].stages)
        rows[order][0].set_ylabel("T² · KL per token (nats)")
    add_legend(figure, [axes for row in rows.values() for axes in row])
    return figure


def _panel(axes: Axes, courses: Mapping[str, Sequence[Course]], look: Mapping[str, Style]) -> None:
    curves = {variant: curve(of_runs) for variant, of_runs in courses.items()}
    zeros = {variant: positions for variant, of_runs in courses.items() if (positions := collapses(of_runs))}
    statistics = [value for points in curves.values() for _, value in points if value.mean > ZERO]
    lowest = _decade(min((value.mean for value in statistics), default=1e-5))
    highest = _decade(max((value.mean + (value.sd or 0.0) for value in statistics), default=1e-5)) + 1
    floor = 10.0 ** (lowest - bool(zeros))  # zero, which a logarithmic axis lacks, gets a decade
    for variant, points in curves.items():
        raised = [(position, value if value.mean > ZERO else Statistic(floor)) for position, value in points]
        draw_band(axes, raised, look[variant], variant, floor)
    decades = range(lowest, highest + 1)
    labels = {10.0**exponent: f"$10^{{{exponent}}}$" for exponent in decades} | ({floor: "0"} if zeros else {})
    axes.set_yscale("log")
    axes.set_ylim(floor, 10.0**highest)
    axes.set_yticks(list(labels), list(labels.values()))
    axes.set_yticks([], minor=True)
    for variant, positions in zeros.items():
        marked = positions[:: max(1, len(positions) // MARKS)]
        axes.scatter(marked, [floor] * len(marked), 50, look[variant].colour, marker="v", clip_on=False, zorder=3)
    if zeros:
        axes.scatter([], [], 50, BLACK, marker="v", label=COLLAPSE)  # for the legend


def _decade(value: float) -> int:
    """Return the exponent of the largest power of ten that is at most ``value``."""
    return math.floor(math.log10(value))
