"""Charts of scores in percent: matrices, curves over the checkpoints, bars."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ray_l4.report.html.blocks import Chart
from ray_l4.report.html.drawing import (
    HEAT,
    INK,
    LEGEND_ROW,
    MARKERS,
    SMALL,
    WIDTH,
    chart,
    colour,
    dashes,
    legend,
    legend_rows,
)
from ray_l4.report.html.text import visible, wrapped
from ray_l4.report.markdown import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Sequence[float | None]
NO_SPREAD: Mapping[str, Values] = MappingProxyType({})
DARKEST = 0.6
"""Opacity of the cell of a score of 100: its number is still readable on light and on dark pages."""


CELL_WIDTH = 0.56
"""Inches that a cell with the number 100.0 needs."""
CHARACTER = 0.1
"""Inches of a character in a label."""


def heat_map(id: str, title: str, stages: Sequence[str], tasks: Sequence[str], matrix: Sequence[Values]) -> Chart:
    """Chart a score matrix: a row for each stage, a column for each task; a deeper colour is a better score."""
    lines = [
        f"after {stage}: " + ", ".join(f"{task} {number(score)}" for task, score in zip(tasks, row, strict=True))
        for stage, row in zip(stages, matrix, strict=True)
    ]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, scores in enumerate(matrix):
            for column, score in enumerate(scores):
                axes.fill_between(
                    [column - 0.48, column + 0.48],
                    row - 0.46,
                    row + 0.46,
                    facecolor=HEAT,
                    edgecolor="none",
                    alpha=DARKEST * (score or 0.0) / 100,
                )
                axes.text(column, row, number(score), ha="center", va="center")
        axes.set_xlim(-0.5, len(tasks) - 0.5)
        axes.set_ylim(len(matrix) - 0.5, -0.5)
        axes.set_xticks(range(len(tasks)), [visible(task) for task in tasks], **_slanted(tasks))
        axes.set_yticks(range(len(stages)), [visible(stage) for stage in stages])
        axes.set_ylabel("after")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    width = 0.5 + CHARACTER * max(map(len, stages)) + CELL_WIDTH * len(tasks)
    height = 1.0 + 0.42 * len(matrix) + room_above(tasks)
    return chart(id, title, "; ".join(lines), plot, height, width=max(WIDTH, width))


def learning_curves(
    id: str,
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    stages: Mapping[str, tuple[float, float]],
) -> Chart:
    """Chart scores over the epochs of the run.

    ``curves``: task -> (epochs from the beginning of the run, score) of every checkpoint. ``stages``: name -> its
    beginning and end in these epochs.
    """
    from matplotlib.ticker import MaxNLocator

    last = [f"{task} {number(points[-1][1])} at the end" for task, points in curves.items()]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, points in enumerate(curves.values()):
            epochs, values = zip(*points, strict=True)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(epochs, values, dashes(index), color=colour(index), marker=marker)
        axes.set_xlim(0, max(end for _, end in stages.values()) * 1.02)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("epochs")
        axes.set_ylabel("score (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        mark_stages([axes], stages)
        legend(figure, axes.get_lines()[: len(curves)], list(curves))

    height = 3.2 + LEGEND_ROW * legend_rows(list(curves)) + room_above(stages)
    return chart(id, title, "; ".join(last), plot, height)


def grouped_bars(
    id: str,
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Values],
    unit: str = "%",
    caption: str = "",
    spread: Mapping[str, Values] = NO_SPREAD,
) -> Chart:
    """Chart horizontal bars: a group for each name, with a bar for each series; a dash where a value is undefined.

    ``spread`` has the standard deviations, where there are any, which thin lines show to both sides.
    """
    lines = [
        f"{group}: " + ", ".join(f"{name} {number(values[index])}" for name, values in series.items())
        for index, group in enumerate(groups)
    ]
    thickness = 0.8 / len(series)
    labels = [wrapped(group) for group in groups]

    def plot(figure: Figure) -> None:
        from matplotlib.container import BarContainer

        axes = figure.add_subplot()
        for index, (name, values) in enumerate(series.items()):
            positions = [group + (index - (len(series) - 1) / 2) * thickness for group in range(len(groups))]
            above = [value or 0.0 for value in spread.get(name, ())]
            below = [min(sd, value or 0.0) for sd, value in zip(above, values, strict=False)]  # no score is negative
            bars = axes.barh(
                positions,
                [value or 0.0 for value in values],
                thickness * 0.9,
                color=colour(index),
                xerr=[below, above] if any(above) else None,
                error_kw={"elinewidth": 1.0, "ecolor": INK},
            )
            axes.bar_label(bars, [number(value) for value in values], padding=3, fontsize=SMALL)
        axes.set_yticks(range(len(groups)), labels)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.margins(x=0.16)
        if not any(value for values in series.values() for value in values):
            axes.set_xlim(0, 1)  # else matplotlib invents an axis around zero
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(unit)
        if len(series) > 1:
            bars_of = [container for container in axes.containers if isinstance(container, BarContainer)]
            legend(figure, bars_of, list(series))

    lines_of_text = max(label.count("\n") + 1 for label in labels)
    group_height = max(0.18 + 0.22 * len(series), 0.12 + 0.19 * lines_of_text)
    height = 0.9 + len(groups) * group_height + LEGEND_ROW * legend_rows(list(series))
    return chart(id, title, "; ".join(lines), plot, height, caption)


def mark_stages(rows: Sequence[Axes], stages: Mapping[str, tuple[float, float]]) -> None:
    """Mark the beginning of each stage in all panels, and write its name above the first panel, over its middle."""
    for axes in rows:
        for begin, _ in list(stages.values())[1:]:
            axes.axvline(begin, color=INK, linewidth=0.8, linestyle=":", alpha=0.7)
    above = rows[0].secondary_xaxis("top")
    middles = [(begin + end) / 2 for begin, end in stages.values()]
    above.set_xticks(middles, [visible(name) for name in stages], **_slanted(stages, left=True))
    above.tick_params(length=0, labelsize=SMALL)
    above.spines[:].set_visible(False)


def room_above(names: Collection[str]) -> float:
    """Return the extra height in inches that names need if they are slanted."""
    return 0.5 if _slanted(names) else 0.0


def _slanted(names: Collection[str], left: bool = False) -> dict[str, Any]:
    """Return the text settings that keep tick labels apart, below an axis or (``left``) above it."""
    if len(names) * max(map(len, names)) <= 34:
        return {}
    return {"rotation": 30, "ha": "left" if left else "right", "rotation_mode": "anchor"}
