"""How far a student's predictions are from those of its peers or teachers, over time: collapse must be visible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from analysis.caption import setting, title
from analysis.figures.style import BLACK, Style, add_legend, draw_band, mark_stages, new_figure, panels, styles
from analysis.results import Results, Run
from ray_l4.errors import ConfigError
from ray_l4.methods import get_method
from ray_l4.report.aggregate import Statistic, statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADS: Mapping[str, str] = {"kd_qa": "answer tokens", "kd_lm": "all tokens"}
"""Column of the step figures -> what it is measured on."""
POINTS = 60
"""Points of a curve in a stage, at most."""
ZERO = 1e-12
"""Below this a divergence is that of rounding: the peers predict the same."""
COLLAPSE = "zero in a run: the same predictions (collapse)"
MARKS = 12
"""Marks of zeros in a panel, about."""
Course = dict[float, float]
"""Place in the stream, in stages -> divergence per token."""
PANEL = (4.6, 3.0)
"""Inches."""


def course(run: Run, column: str) -> Course:
    """Divergence per token, averaged over students and over pieces of an epoch: place -> value.

    Places are in stages, as in the learning curves, so that runs with other numbers of steps fall together.
    """
    epochs = run.experiment.training.epochs
    pieces = max(1, POINTS // epochs)
    found: Course = {}
    for path in sorted((run.path / "steps").glob("*.parquet")):
        table = pq.read_table(path, columns=["stage", "epoch", "step", column]).drop_null()
        if not table.num_rows:
            continue
        stage, epoch = table.column("stage")[0].as_py(), table.column("epoch")[0].as_py()
        steps, values = table.column("step").to_numpy(), table.column(column).to_numpy()
        first, count = steps.min(), steps.max() - steps.min() + 1
        piece = (steps - first) * min(pieces, count) // count
        for index in np.unique(piece):
            place = stage + (epoch - 1 + (index + 0.5) / min(pieces, count)) / epochs
            found[round(float(place), 6)] = float(values[piece == index].mean())
    return dict(sorted(found.items()))


def curve(courses: Sequence[Course]) -> list[tuple[float, Statistic]]:
    """Mean and standard deviation over runs of their courses."""
    places = sorted({place for one in courses for place in one})
    found = ((place, statistic(one.get(place) for one in courses)) for place in places)
    return [(place, value) for place, value in found if value]


def collapses(courses: Sequence[Course]) -> list[float]:
    """Places where the divergence of at least one run is zero; a mean over runs would hide it."""
    return sorted({place for one in courses for place, value in one.items() if value <= ZERO})


def draw(results: Results, student: int) -> Figure:
    """A row of panels for each order. ``student`` does not matter: a curve is the mean over the students of a run.

    Raises ConfigError if no run has peers or teachers.
    """
    blocks: dict[str, list[Run]] = {}
    for run in results.runs:
        if get_method(run.summary["method"]).topology != "isolated":
            blocks.setdefault(run.block, []).append(run)
    if not blocks:
        raise ConfigError("no run has peers or teachers to disagree with (l4, l2kd-word, lwf and the like have)")
    what = title(results, "divergence between a student and its peers or teachers")
    size = (PANEL[0] * len(HEADS) + 0.5, PANEL[1] * len(blocks) + 1.3)
    figure = new_figure(*size, what, setting(results))
    rows = panels(figure, list(blocks), list(HEADS.values()), share_y=False)
    look = styles(results.variants())
    for block, runs in blocks.items():
        for axes, column in zip(rows[block], HEADS, strict=True):
            variants = dict.fromkeys(run.variant for run in runs)
            courses = {name: [course(run, column) for run in runs if run.variant == name] for name in variants}
            _panel(axes, courses, look)
            mark_stages(axes, runs[0].tasks)
        rows[block][0].set_ylabel("T² · KL per token (nats)")
    add_legend(figure, [axes for row in rows.values() for axes in row])
    return figure


def _panel(axes: Axes, courses: Mapping[str, Sequence[Course]], look: Mapping[str, Style]) -> None:
    curves = {variant: curve(of_runs) for variant, of_runs in courses.items()}
    zeros = {variant: places for variant, of_runs in courses.items() if (places := collapses(of_runs))}
    statistics = [value for points in curves.values() for _, value in points if value.mean > ZERO]
    lowest = _decade(min((value.mean for value in statistics), default=1e-5))
    highest = _decade(max((value.mean + (value.sd or 0.0) for value in statistics), default=1e-5)) + 1
    floor = 10.0 ** (lowest - bool(zeros))  # zero gets a decade of its own: a logarithmic axis has no place for it
    for variant, points in curves.items():
        raised = [(place, value if value.mean > ZERO else Statistic(floor)) for place, value in points]
        draw_band(axes, raised, look[variant], variant, floor)
    decades = range(lowest, highest + 1)
    labels = {10.0**exponent: f"$10^{{{exponent}}}$" for exponent in decades} | ({floor: "0"} if zeros else {})
    axes.set_yscale("log")
    axes.set_ylim(floor, 10.0**highest)
    axes.set_yticks(list(labels), list(labels.values()))
    axes.set_yticks([], minor=True)
    for variant, places in zeros.items():
        marked = places[:: max(1, len(places) // MARKS)]
        axes.scatter(marked, [floor] * len(marked), 50, look[variant].colour, marker="v", clip_on=False, zorder=3)
    if zeros:
        axes.scatter([], [], 50, BLACK, marker="v", label=COLLAPSE)  # for the legend


def _decade(value: float) -> int:
    """Exponent of the largest power of ten that is not above ``value``."""
    return math.floor(math.log10(value))
