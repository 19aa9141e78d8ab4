"""Finished runs as one figure: the scores of every task after every stage, with average score and forgetting below.

::

    python -m analysis.plot_runs RUN_DIR... --out FILE.png

Each run has a heat map (rows: after learning a task; columns: the scored task); bars compare average score and
forgetting of the runs. As in the reports, student 0 stands for its run.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.command import exit_status
from analysis.figures.heat_map import paint
from analysis.figures.style import BLUE, ORANGE, new_figure, save, tidy
from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import statistic
from ray_l4.report.finished_run import FinishedRun, labels
from ray_l4.report.markdown import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STUDENT = 0
COLUMNS = 3
"""Largest number of heat maps in a row."""
BARS_HEIGHT = 2.8
"""Inches."""
MIN_WIDTH = 6.0
"""Inches."""
BARS: Mapping[str, tuple[str, str]] = {
    "average_accuracy": ("average score", BLUE),
    "forgetting": ("forgetting", ORANGE),
}
"""Figure of a run -> its name and colour (Okabe and Ito's blue and orange)."""


def read(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read the finished runs in ``folders``, in this order.

    Raises RunDirectoryError for a folder that is no finished run, ConfigError for runs over different tasks.
    """
    runs = [FinishedRun.open(folder) for folder in folders]
    task_sets = sorted({", ".join(sorted(run.tasks)) for run in runs})
    if len(task_sets) > 1:
        raise ConfigError(f"averages over different tasks cannot be compared; the runs learned {'; '.join(task_sets)}")
    return runs


def draw(runs: Sequence[FinishedRun]) -> Figure:
    """Draw a heat map of each run, then the bars."""
    num_tasks = len(runs[0].tasks)
    num_columns = min(COLUMNS, len(runs))
    num_rows = math.ceil(len(runs) / num_columns)
    width, height = 1.7 + 0.75 * num_tasks, 1.4 + 0.5 * num_tasks  # inches of a heat map with its labels
    size = (max(MIN_WIDTH, num_columns * width), num_rows * height + BARS_HEIGHT)
    figure = new_figure(*size, "score (%) of every task after every stage", "")
    grid = figure.add_gridspec(num_rows + 1, num_columns, height_ratios=[height] * num_rows + [BARS_HEIGHT])
    names = labels(runs)
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        axes = figure.add_subplot(grid[index // num_columns, index % num_columns])
        axes.set_title(name)
        cells = [[statistic([score]) for score in row] for row in run.matrix(STUDENT)]
        paint(axes, cells, run.tasks, run.stages)
    _bars(figure.add_subplot(grid[num_rows, :]), names, runs)
    return figure


def _bars(axes: Axes, names: Sequence[str], runs: Sequence[FinishedRun]) -> None:
    width = 0.38
    for index, (key, (name, colour)) in enumerate(BARS.items()):
        values = [run.figure(key, STUDENT) for run in runs]
        positions = [run + (index - 0.5) * width for run in range(len(runs))]
        drawn = axes.bar(positions, [value or 0.0 for value in values], width * 0.95, color=colour, label=name)
        axes.bar_label(drawn, [number(value) for value in values], padding=2)
    axes.set_ylim(0, 112)  # room for the number on a bar of 100, beside the legend
    axes.set_yticks(range(0, 101, 25))
    tidy(axes)
    axes.set_xlim(-0.7, len(runs) - 0.3)
    axes.set_ylabel("%")
    axes.set_xticks(range(len(runs)), [name.replace(", ", "\n", 1) for name in names])
    axes.tick_params(axis="x", length=0)
    axes.legend(frameon=False, ncols=len(BARS), loc="lower right", bbox_to_anchor=(1, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.plot_runs", description="Draw finished runs as one figure."
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path, help="folder of a finished run")
    parser.add_argument("--out", metavar="FILE.png", required=True, type=Path, help="figure to write, or .pdf, .svg")
    options = parser.parse_args(arguments)

    def work() -> None:
        save(draw(read(options.run_dirs)), options.out)
        print(options.out)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
