"""Charts of figures over the steps of a run, a line for each student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_l4.report.html.blocks import Chart
from ray_l4.report.html.charts_scores import mark_stages, room_above
from ray_l4.report.html.drawing import INK, LEGEND_ROW, chart, colour, dashes, legend, legend_rows
from ray_l4.report.steps import SECONDS, Steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Stages = Mapping[str, tuple[float, float]]
"""Name of a stage -> the position of its first step, and that after its last step."""
Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name -> positions and values; NaN leaves a gap."""
ROOM = 1.6
"""Factor between the values and the ends of a logarithmic axis, which thus always has a tick at a 1, 2 or 5."""


def stage_spans(steps: Steps, names: Sequence[str]) -> Stages:
    """Return the position of every stage that has steps."""
    pairs = zip(steps.starts, steps.starts[1:], strict=False)
    return {name: (begin, end) for name, (begin, end) in zip(names, pairs, strict=False) if end > begin}


def training(id: str, title: str, steps: Steps, stages: Stages) -> Chart:
    """Chart the loss above the learning rate."""
    panels = {"loss": _by_student(steps, "loss"), "learning rate": _by_student(steps, "lr")}
    return _panels(id, title, panels, stages, "Means over neighbouring steps where there are many.")


def disagreement(id: str, title: str, steps: Steps, stages: Stages) -> Chart:
    """Chart the divergence of each student's predictions from those of its teachers.

    The axis is logarithmic: lines that fall by decades show students that have collapsed into one model. Means of
    exactly zero are marked on a line labelled 0 at the bottom.
    """
    panels = {"answers": _by_student(steps, "kd_qa"), "whole text": _by_student(steps, "kd_lm")}
    caption = (
        "Divergence per token, logarithmic. Near zero, students predict the same; exact zeros stand at the bottom."
    )
    return _panels(id, title, _known(panels), stages, caption, logarithmic=True)


def exchange(id: str, title: str, steps: Steps, stages: Stages) -> Chart:
    """Chart the traffic of each student in a step, and the share of its time that it waits for its teachers."""
    traffic: dict[str, Lines] = {
        label: {name: (x, y / 1e6) for name, (x, y) in _by_student(steps, column).items()}
        for label, column in {"sent (MB)": "bytes_sent", "received (MB)": "bytes_received"}.items()
    }
    waiting = {}
    for student in steps.students():
        position, *seconds = steps.of_student(student).thinned(*SECONDS)
        total, waited = np.sum(seconds, axis=0), seconds[SECONDS.index("wait_seconds")]
        share = np.divide(100 * waited, total, out=np.zeros_like(total), where=total > 0)
        waiting[f"student {student}"] = (position, share)
    return _panels(id, title, {**_known(traffic), "waiting (%)": waiting}, stages, "Sent and received in a step.")


def _known(panels: Mapping[str, Lines]) -> dict[str, Lines]:
    """Return the panels that have any value to draw."""
    return {name: lines for name, lines in panels.items() if any(np.isfinite(y).any() for _, y in lines.values())}


def _by_student(steps: Steps, column: str) -> Lines:
    lines = {}
    for student in steps.students():
        position, values = steps.of_student(student).thinned(column)
        lines[f"student {student}"] = (position, values)
    return lines


def _panels(
    id: str, title: str, panels: Mapping[str, Lines], stages: Stages, caption: str, *, logarithmic: bool = False
) -> Chart:
    """Chart one panel below the other over the same steps."""
    from matplotlib.lines import Line2D

    def plot(figure: Figure) -> None:
        rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0].tolist()
        for axes, (label, lines) in zip(rows, panels.items(), strict=True):
            foot = _logarithmic(axes, lines) if logarithmic else -np.inf
            for index, (x, y) in enumerate(lines.values()):
                axes.plot(x, np.maximum(y, foot), dashes(index), color=colour(index))
                if logarithmic:
                    axes.plot(x[y <= 0], np.full((y <= 0).sum(), foot), "v", color=colour(index))
            axes.set_ylabel(label)
            if not logarithmic:
                axes.set_ylim(bottom=0)
        rows[-1].set_xlabel("steps")
        rows[-1].set_xlim(0, max(end for _, end in stages.values()))
        mark_stages(rows, stages)
        names = list(next(iter(panels.values())))
        legend(figure, [Line2D([], [], color=colour(i), linestyle=dashes(i)) for i in range(len(names))], names)

    alternative = "; ".join(f"{label}: {_in_words(lines)}" for label, lines in panels.items())
    names = list(next(iter(panels.values()), {}))
    height = 1.0 + 1.55 * len(panels) + room_above(stages) + LEGEND_ROW * legend_rows(names or [""])
    return chart(id, title, alternative, plot, height, caption)


def _logarithmic(axes: Axes, lines: Lines) -> float:
    """Give ``axes`` a logarithmic scale. Return the value, below all others, at which zeros are to be drawn."""
    values = np.concatenate([y for _, y in lines.values()])
    positive = values[values > 0]
    bottom, top = (positive.min() / ROOM, positive.max() * ROOM) if len(positive) else (ROOM / 10, ROOM)
    first, last = np.floor(np.log10(bottom)), np.ceil(np.log10(top))
    if last - first <= 3:
        ticks = [factor * 10.0**power for power in np.arange(first, last) for factor in (1, 2, 5)]
    else:
        ticks = list(10.0 ** np.arange(last, first - 1, -np.ceil((last - first) / 5)))
    marks = {tick: f"{tick:g}" for tick in ticks if bottom <= tick <= top}
    foot = float(10.0 ** (first - 1))
    if (values <= 0).any():  # rounding may make a divergence of zero negative
        bottom, marks = foot * 0.6, marks | {foot: "0"}
        axes.axhline(foot, color=INK, linewidth=0.8, alpha=0.5)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.set_yticks(list(marks), list(marks.values()))
    axes.set_yticks([], minor=True)
    return foot


def _in_words(lines: Lines) -> str:
    ends = {name: values[np.isfinite(values)] for name, (_, values) in lines.items()}
    return ", ".join(f"{name} from {y[0]:.3g} to {y[-1]:.3g}" for name, y in ends.items() if len(y))
