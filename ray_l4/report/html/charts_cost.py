"""Charts of time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ray_l4.report.html.blocks import Chart
from ray_l4.report.html.drawing import INK, LEGEND_ROW, SMALL, chart, colour, legend, legend_rows
from ray_l4.report.html.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Span:
    """An activity of one process of the run; times are UNIX seconds."""

    lane: str
    """The process."""
    kind: str
    """The activity."""
    start: float
    end: float


PAUSE = 60.0
"""Seconds without any activity that mean that the run was interrupted and resumed later."""
SEAMS = "Dotted lines: the run was interrupted and resumed later; the time between is left out."


def without_pauses(spans: Sequence[Span]) -> tuple[list[Span], list[float]]:
    """Return the spans, in the given order, moved so that pauses are closed, and the times of these seams."""
    moves, seams, latest = [], [], min(span.start for span in spans)
    total = 0.0
    for span in sorted(spans, key=lambda span: span.start):
        if span.start - latest > PAUSE:
            total += span.start - latest
            seams.append(span.start - total)
            moves.append((span.start, total))
        latest = max(latest, span.end)

    def moved(span: Span) -> Span:
        by = max((total for begin, total in moves if begin <= span.start), default=0.0)
        return replace(span, start=span.start - by, end=span.end - by)

    return [moved(span) for span in spans], seams


def timeline(id: str, title: str, spans: Sequence[Span]) -> Chart:
    """Chart the activity of every process, in minutes from the beginning of the run.

    The lanes stand from top to bottom in the order of ``spans``.
    """
    from matplotlib.patches import Patch

    lanes, kinds = list(dict.fromkeys(s.lane for s in spans)), list(dict.fromkeys(s.kind for s in spans))
    spans, seams = without_pauses(spans)
    zero = min(span.start for span in spans)
    lasted = (max(span.end for span in spans) - zero) / 60

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for lane, name in enumerate(lanes):
            for index, kind in enumerate(kinds):
                own = [span for span in spans if (span.lane, span.kind) == (name, kind)]
                bars = [((span.start - zero) / 60, (span.end - span.start) / 60) for span in own]
                axes.broken_barh(bars, (lane - 0.36, 0.72), facecolors=colour(index), edgecolor="none")
        for seam in seams:
            axes.axvline((seam - zero) / 60, color=INK, linestyle=":")
        axes.set_yticks(range(len(lanes)), [visible(lane) for lane in lanes])
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.set_xlim(0, lasted or 1)
        axes.set_xlabel("minutes")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        legend(figure, [Patch(color=colour(index)) for index in range(len(kinds))], kinds)

    alternative = f"{len(lanes)} lanes over {lasted:.1f} minutes: {', '.join(lanes)}"
    height = 1.1 + 0.38 * len(lanes) + LEGEND_ROW * legend_rows(kinds)
    return chart(id, title, alternative, plot, height, SEAMS if seams else "")


def stacked_bars(
    id: str, title: str, groups: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str, caption: str = ""
) -> Chart:
    """Chart a horizontal bar for each group, made of its parts, with their sum at its end."""
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        begin = [0.0] * len(groups)
        for index, values in enumerate(parts.values()):
            bars = axes.barh(range(len(groups)), values, 0.62, left=begin, color=colour(index))
            begin = [start + value for start, value in zip(begin, values, strict=True)]
        axes.bar_label(bars, [f"{total:.0f}" for total in totals], padding=3, fontsize=SMALL)
        axes.set_yticks(range(len(groups)), [visible(group) for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(unit)
        if len(parts) > 1:
            legend(figure, axes.containers, list(parts))

    alternative = "; ".join(f"{group} {total:.0f} {unit}" for group, total in zip(groups, totals, strict=True))
    return chart(id, title, alternative, plot, 0.8 + 0.4 * len(groups) + LEGEND_ROW * legend_rows(list(parts)), caption)
