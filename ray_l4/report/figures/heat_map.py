"""Score matrices: every task after every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_l4.report.aggregate import Statistic, statistic
from ray_l4.report.caption import setting, title
from ray_l4.report.figures.style import GREY, SMALL, new_figure
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import number
from ray_l4.report.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
"""Largest number of heat maps in a row."""
MIN_WIDTH = 6.0
"""Inches."""
CELL_ASPECT = 0.6
"""Height of a cell as a share of its width."""
COLOUR_MAP = "Blues"
"""One hue from nearly white (0) to dark (100), which reads the same with any kind of colour vision."""
WHITE_FROM = 72.0
"""Lowest score with a white number. The contrast of a number with its cell is 4.5 or more at every score."""


def matrix(runs: Sequence[FinishedRun], student: int) -> list[list[Statistic | None]]:
    """Return statistics over runs of every cell of the score matrix: a row for each stage, a column for each task."""
    matrices = [run.matrix(student) for run in runs]
    return [[statistic(cell) for cell in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def draw(results: Results, student: int) -> Figure:
    """Draw a heat map for each variant and order. Every order begins a new row of heat maps."""
    rows: list[list[list[FinishedRun]]] = []
    for runs in results.by_order().values():
        mine = [run for run in runs if student in run.students]
        groups = [[run for run in mine if run.variant == name] for name in dict.fromkeys(run.variant for run in mine)]
        rows += [groups[start : start + COLUMNS] for start in range(0, len(groups), COLUMNS)]
    num_tasks, num_columns = len(results.tasks), max(map(len, rows))
    size = (max(MIN_WIDTH, num_columns * (1.8 + 0.8 * num_tasks)), len(rows) * (1.4 + 0.5 * num_tasks) + 0.8)
    figure = new_figure(*size, title(results, "score (%) of every task after every stage"), setting(results))
    grid = figure.add_gridspec(len(rows), num_columns)
    for row, groups in enumerate(rows):
        for column, runs in enumerate(groups):
            axes = figure.add_subplot(grid[row, column])
            axes.set_title(f"{runs[0].variant}\n{runs[0].order}", fontsize=SMALL)
            paint(axes, matrix(runs, student), runs[0].tasks, runs[0].stages)
    return figure


def paint(axes: Axes, cells: Sequence[Sequence[Statistic | None]], tasks: Sequence[str], stages: Sequence[str]) -> None:
    """Draw a heat map with its numbers. A cell that was not scored is white, with a dash."""
    means = [[np.nan if cell is None else cell.mean for cell in row] for row in cells]
    axes.imshow(np.ma.masked_invalid(np.array(means, dtype=float)), cmap=COLOUR_MAP, vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(stages)), [f"after {stage}" for stage in stages])
    axes.tick_params(length=0, labelsize=SMALL)
    axes.set_box_aspect(CELL_ASPECT * len(stages) / len(tasks))
    axes.spines[:].set_color(GREY)
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            text = number(cell.mean if cell else None)
            text += f"\n±{number(cell.sd)}" if cell and cell.sd is not None else ""
            colour = "white" if cell and cell.mean >= WHITE_FROM else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=SMALL)
