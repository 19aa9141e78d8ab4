"""The score matrix: every task after every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.caption import setting, title
from analysis.figures.style import GREY, SMALL, new_figure
from analysis.results import Results, Run
from ray_l4.report.aggregate import Statistic, statistic
from ray_l4.report.markdown import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
"""Heat maps side by side, at most."""
MIN_WIDTH = 6.0
CELL_ASPECT = 0.6
"""Height of a cell as a share of its width."""
COLOUR_MAP = "Blues"
"""One hue from nearly white (nothing) to dark (all right): reads the same whatever colours one can tell apart."""
WHITE_FROM = 72.0
"""From this score on a cell is so dark that its number is white; both are then at least 4.5 times as bright or dark."""


def matrix(runs: Sequence[Run], student: int) -> list[list[Statistic | None]]:
    """Statistics over runs of every cell of the score matrix; rows are stages, columns the tasks in their order."""
    matrices = [run.summary["score_matrix"][str(student)] for run in runs]
    return [[statistic(cell) for cell in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def draw(results: Results, student: int) -> Figure:
    """A heat map for each variant and order; every order begins a new row of them."""
    rows: list[list[list[Run]]] = []
    for runs in results.blocks().values():
        mine = [run for run in runs if student in run.students()]
        groups = [[run for run in mine if run.variant == name] for name in dict.fromkeys(run.variant for run in mine)]
        rows += [groups[start : start + COLUMNS] for start in range(0, len(groups), COLUMNS)]
    num_tasks, num_columns = len(results.tasks), max(map(len, rows))
    size = (max(MIN_WIDTH, num_columns * (1.8 + 0.8 * num_tasks)), len(rows) * (1.4 + 0.5 * num_tasks) + 0.8)
    figure = new_figure(*size, title(results, "score (%) of every task after every stage"), setting(results))
    grid = figure.add_gridspec(len(rows), num_columns)
    for place, groups in enumerate(rows):
        for column, runs in enumerate(groups):
            axes = figure.add_subplot(grid[place, column])
            axes.set_title(f"{runs[0].variant}\n{runs[0].block}", fontsize=SMALL)
            paint(axes, matrix(runs, student), runs[0].tasks, stages_of(runs[0]))
    return figure


def stages_of(run: Run) -> list[str]:
    """Names of the matrix's rows; runs made before there were others have one for each task."""
    return list(run.summary.get("stages") or run.tasks)


def paint(axes: Axes, cells: Sequence[Sequence[Statistic | None]], tasks: Sequence[str], stages: Sequence[str]) -> None:
    """A heat map with its numbers; a cell that was not scored is left white with a dash."""
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
