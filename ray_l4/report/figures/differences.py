"""Paired differences of every variant to one of them: mean and 95 % interval, a line for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ray_l4.errors import ConfigError
from ray_l4.metrics.bootstrap import FEWEST
from ray_l4.report.caption import setting, title
from ray_l4.report.figures.style import GREY, SMALL, add_legend, new_figure, styles, tidy
from ray_l4.report.paired import NOT_SHOWN, Difference, PairedRow, compare
from ray_l4.report.paired_text import shown_columns, signed
from ray_l4.report.paired_text import title as paired_title
from ray_l4.report.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_WIDTH = 4.0
"""Inches."""
SHOWN, OPEN, FEW = "0 is outside of the 95 % interval", "no difference shown", f"fewer than {FEWEST} pairs, no interval"
_POINT: Mapping[str, Any] = MappingProxyType({"marker": "o", "markersize": 5.5, "linestyle": ""})
MARKERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {SHOWN: _POINT, OPEN: {**_POINT, "markerfacecolor": "white"}, FEW: {**_POINT, "marker": "x"}}
)
"""What the interval shows -> the look of the mean."""


def draw(results: Results, student: int) -> Figure:
    """Draw a panel for the average score and one for forgetting, over all orders together.

    Raises ConfigError if no variant to compare with is named, or if no other variant has a pair with it.
    """
    if results.against is None:
        raise ConfigError(
            "differences needs a variant to compare with: --against VARIANT, or sweep.against in the protocol. "
            f"Variants here: {', '.join(results.variants())}"
        )
    paired = compare(results.runs, results.against, student, results.forgetting)
    columns, rows = shown_columns(paired), [row for row in paired.rows if row.pairs]
    if not columns:
        raise ConfigError(f"differences needs runs of {paired.against} and of another variant with the same seed")
    subject = title(results, f"{paired_title(paired)}: mean and 95 % interval")
    figure = new_figure(1.8 + PANEL_WIDTH * len(columns), 1.8 + 0.5 * len(rows), subject, setting(results))
    panels = list(figure.subplots(1, len(columns), sharey=True, squeeze=False)[0])
    colours = {variant: style.colour for variant, style in styles(results.variants()).items()}
    for column, axes in zip(columns, panels, strict=True):
        _panel(axes, rows, column, colours)
    panels[0].set_yticks(range(len(rows)), [_name(row) for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    add_legend(figure, panels)
    return figure


def _panel(axes: Axes, rows: Sequence[PairedRow], column: str, colours: dict[str, str]) -> None:
    """Draw a marker with its interval for every row: filled where the interval shows a difference."""
    axes.axvline(0, color=GREY, linewidth=1.0, zorder=0)
    for index, row in enumerate(rows):
        difference = row.differences[column]
        if difference is not None:
            _line(axes, index, difference, colours[row.variant])
    lower = any(one.lower_is_better for row in rows if (one := row.differences[column]))
    axes.set_title(column, fontsize="medium")
    axes.set_xlabel(f"difference in points: {'left' if lower else 'right'} of 0 is better", fontsize=SMALL)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    tidy(axes)


def _line(axes: Axes, position: int, difference: Difference, colour: str) -> None:
    look = FEW if difference.interval is None else OPEN if difference.verdict == NOT_SHOWN else SHOWN
    if difference.interval is not None:
        axes.plot(difference.interval, [position, position], color=colour, linewidth=1.6)
    axes.plot(difference.mean, position, color=colour, **MARKERS[look])
    axes.plot([], [], color="0.3", label=look, **MARKERS[look])  # the legend is about shapes, not about colours
    axes.annotate(
        signed(difference.mean),
        (difference.mean, position),
        (0, 7),
        textcoords="offset points",
        ha="center",
        fontsize="x-small",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )


def _name(row: PairedRow) -> str:
    """Return the label and the number of pairs."""
    return f"{row.label} ({row.pairs} {'pair' if row.pairs == 1 else 'pairs'})"
