"""Single runs side by side: the scores of every task after every stage, with average score and forgetting below.

Each run has a heat map (rows: after learning a task; columns: the scored task); bars compare average score and
forgetting of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ray_l4.report.aggregate import AVERAGE, scores_of, statistic
from ray_l4.report.caption import setting, title
from ray_l4.report.figures.heat_map import paint
from ray_l4.report.figures.style import BLUE, ORANGE, new_figure, tidy
from ray_l4.report.finished_run import labels
from ray_l4.report.markdown import number
from ray_l4.report.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
"""Largest number of heat maps in a row."""
BARS_HEIGHT = 2.8
"""Inches."""
MIN_WIDTH = 6.0
"""Inches."""


def draw(results: Results, student: int) -> Figure:
    """Draw a heat map of each run that has ``student``, then the bars."""
    runs = [run for run in results.runs if student in run.students]
    scores = [scores_of(run, student, results.forgetting) for run in runs]
    num_tasks = len(runs[0].tasks)
    num_columns = min(COLUMNS, len(runs))
    num_rows = math.ceil(len(runs) / num_columns)
    width, height = 1.7 + 0.75 * num_tasks, 1.4 + 0.5 * num_tasks  # inches of a heat map with its labels
    size = (max(MIN_WIDTH, num_columns * width), num_rows * height + BARS_HEIGHT)
    figure = new_figure(*size, title(results, "score (%) of every task after every stage"), setting(results))
    grid = figure.add_gridspec(num_rows + 1, num_columns, height_ratios=[height] * num_rows + [BARS_HEIGHT])
    names = labels(runs)
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        axes = figure.add_subplot(grid[index // num_columns, index % num_columns])
        axes.set_title(name)
        cells = [[statistic([score]) for score in row] for row in run.matrix(student)]
        paint(axes, cells, run.tasks, run.stages)
    _bars(figure.add_subplot(grid[num_rows, :]), names, scores, results.forgetting)
    return figure


def _bars(axes: Axes, names: Sequence[str], scores: Sequence[Mapping[str, float | None]], forgetting: str) -> None:
    width = 0.38
    bars = {AVERAGE: ("average score", BLUE), forgetting: (forgetting, ORANGE)}
    for index, (column, (name, colour)) in enumerate(bars.items()):
        values = [of_run[column] for of_run in scores]
        positions = [run + (index - 0.5) * width for run in range(len(scores))]
        drawn = axes.bar(positions, [value or 0.0 for value in values], width * 0.95, color=colour, label=name)
        axes.bar_label(drawn, [number(value) for value in values], padding=2)
    axes.set_ylim(0, 112)  # room for the number on a bar of 100, beside the legend
    axes.set_yticks(range(0, 101, 25))
    tidy(axes)
    axes.set_xlim(-0.7, len(scores) - 0.3)
    axes.set_ylabel("%")
    axes.set_xticks(range(len(scores)), [name.replace(", ", "\n", 1) for name in names])
    axes.tick_params(axis="x", length=0)
    axes.legend(frameon=False, ncols=len(bars), loc="lower right", bbox_to_anchor=(1, 1))
