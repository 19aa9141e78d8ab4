"""Finished runs as one figure: the scores of every task after every stage, and what was kept and lost in the end.

::

    python -m analysis.plot_runs RUN_DIR... --out FILE.png

One heat map for each run (rows: after learning a task; columns: the task asked about), and bars that set average score
and forgetting of the runs side by side. As in the reports, a run is represented by its student 0.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.command import exit_status
from analysis.figures.heat_map import paint
from analysis.figures.style import BLUE, ORANGE, new_figure, save, tidy
from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import statistic
from ray_l4.report.markdown import number, variant_of
from ray_l4.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STUDENT = "0"
COLUMNS = 3
"""Heat maps side by side, at most."""
BARS_HEIGHT = 2.8
MIN_WIDTH = 6.0
"""Inches."""
BARS: Mapping[str, tuple[str, str]] = {"average": ("average score", BLUE), "forgetting": ("forgetting", ORANGE)}
"""Attribute of ``RunScores`` -> its name and colour (Okabe and Ito's blue and orange)."""


@dataclass(frozen=True)
class RunScores:
    """What the figure shows of one run; scores are percentages, None where there is none."""

    label: str
    tasks: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    """Rows after each stage, columns the tasks in the order of the stream."""
    stages: tuple[str, ...]
    """Names of the rows."""
    average: float | None
    forgetting: float | None


def read(folders: Sequence[Path]) -> list[RunScores]:
    """The scores of the finished runs in ``folders``, in this order.

    Raises RunDirectoryError for a folder that is no finished run, ConfigError for runs over different tasks.
    """
    summaries = [RunDirectory.open(folder).summary() for folder in folders]
    task_sets = sorted({", ".join(sorted(summary["stream"])) for summary in summaries})
    if len(task_sets) > 1:
        raise ConfigError(
            f"the runs learned different tasks, whose averages cannot be compared: {'; '.join(task_sets)}"
        )
    labels = [f"{variant_of(summary)}, seed {summary['seed']}" for summary in summaries]
    times = Counter(labels)
    return [
        _scores(f"{label} ({folder.resolve().name})" if times[label] > 1 else label, summary)
        for label, folder, summary in zip(labels, folders, summaries, strict=True)
    ]


def _scores(label: str, summary: Mapping[str, Any]) -> RunScores:
    return RunScores(
        label=label,
        tasks=tuple(summary["stream"]),
        matrix=tuple(tuple(row) for row in summary["score_matrix"][STUDENT]),
        stages=tuple(summary.get("stages") or summary["stream"]),
        average=summary["average_accuracy"][STUDENT],
        forgetting=summary["forgetting"][STUDENT],
    )


def draw(runs: Sequence[RunScores]) -> Figure:
    """The figure: a heat map of each run, then the bars."""
    num_tasks = len(runs[0].tasks)
    num_columns = min(COLUMNS, len(runs))
    num_rows = math.ceil(len(runs) / num_columns)
    width, height = 1.7 + 0.75 * num_tasks, 1.4 + 0.5 * num_tasks  # inches of a heat map with its labels
    size = (max(MIN_WIDTH, num_columns * width), num_rows * height + BARS_HEIGHT)
    figure = new_figure(*size, "score (%) of every task after every stage", "")
    grid = figure.add_gridspec(num_rows + 1, num_columns, height_ratios=[height] * num_rows + [BARS_HEIGHT])
    for index, run in enumerate(runs):
        axes = figure.add_subplot(grid[index // num_columns, index % num_columns])
        axes.set_title(run.label)
        paint(axes, [[statistic([score]) for score in row] for row in run.matrix], run.tasks, run.stages)
    _bars(figure.add_subplot(grid[num_rows, :]), runs)
    return figure


def _bars(axes: Axes, runs: Sequence[RunScores]) -> None:
    width = 0.38
    for index, (attribute, (name, colour)) in enumerate(BARS.items()):
        values: list[float | None] = [getattr(run, attribute) for run in runs]
        places = [position + (index - 0.5) * width for position in range(len(runs))]
        drawn = axes.bar(places, [value or 0.0 for value in values], width * 0.95, color=colour, label=name)
        axes.bar_label(drawn, [number(value) for value in values], padding=2)
    axes.set_ylim(0, 112)  # room for the number on a bar of 100, beside the legend
    axes.set_yticks(range(0, 101, 25))
    tidy(axes)
    axes.set_xlim(-0.7, len(runs) - 0.3)
    axes.set_ylabel("%")
    axes.set_xticks(range(len(runs)), [run.label.replace(", ", "\n", 1) for run in runs])
    axes.tick_params(axis="x", length=0)
    axes.legend(frameon=False, ncols=len(BARS), loc="lower right", bbox_to_anchor=(1, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit status."""
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
