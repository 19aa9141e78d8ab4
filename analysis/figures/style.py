"""What all figures share: colours, panels, bands and files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from ray_l4.errors import ConfigError, RayL4Error
from ray_l4.report.aggregate import Statistic
from ray_l4.store.atomic import write_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

DOTS_PER_INCH = 150
SMALL = "small"
CHARACTERS_PER_INCH = 11.5
"""Of a title in medium size."""
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#0072B2", "#D55E00", "#CC79A7"),
)
"""Okabe and Ito's colours, told apart with any kind of colour vision; the yellow is too light on white."""
GREY = "0.75"
_COLOUR_OF = {
    "finetune": BLACK,
    "lamol": ORANGE,
    "l2kd-word": GREEN,
    "l2kd-seq": SKY,
    "l2kd-seq-soft": PURPLE,
    "l4": BLUE,
    "multi-qa-lm": VERMILION,
}
"""The same variant looks alike in every figure."""
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Style:
    """How a variant is drawn."""

    colour: str
    line: str = "-"
    width: float = 1.5
    """Points."""


def styles(variants: Iterable[str]) -> dict[str, Style]:
    """A style for each variant: its own if it has one, else the next that no other one has."""
    named = list(dict.fromkeys(variants))
    found = {variant: Style(_COLOUR_OF[variant]) for variant in named if variant in _COLOUR_OF}
    colours = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
    free = [Style(colour, line) for line, colour in product(_LINES, colours)]
    unused = iter([style for style in free if style not in found.values()])
    others = [variant for variant in named if variant not in found]
    if len(others) > len(free) - len(found):
        raise ConfigError(f"a figure can tell {len(free)} variants apart, not {len(named)}; draw fewer of them")
    return found | {variant: next(unused) for variant in others}


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """An empty figure, in inches. Raises RayL4Error if matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RayL4Error("figures need matplotlib: python -m pip install 'ray-l4[report]'") from error
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: it can be searched, and is set in the page's font
    matplotlib.rcParams["svg.hashsalt"] = "ray-l4"  # the same figure is the same file
    figure = Figure(figsize=(width, height), layout="constrained")
    lines = [line for text in (title, subtitle) for line in wrap(text, int(width * CHARACTERS_PER_INCH))]
    figure.suptitle("\n".join(lines), fontsize="medium")
    return figure


def panels(figure: Figure, blocks: Sequence[str], titles: Sequence[str], share_y: bool = True) -> dict[str, list[Axes]]:
    """For each block a row of panels with these titles, under the block's own title where there are several."""
    parts: list[SubFigure] = list(figure.subfigures(len(blocks), 1, squeeze=False)[:, 0])
    found = {}
    for block, part in zip(blocks, parts, strict=True):
        part.suptitle(block, fontsize=SMALL, color="0.3")
        row = list(part.subplots(1, len(titles), sharey=share_y, squeeze=False)[0])
        for axes, title in zip(row, titles, strict=True):
            axes.set_title(title, fontsize="medium")
            tidy(axes)
        found[block] = row
    return found


def tidy(axes: Axes) -> None:
    """No frame above and to the right, small numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)


def draw_band(
    axes: Axes, points: Sequence[tuple[float, Statistic]], style: Style, label: str, floor: float = float("-inf")
) -> None:
    """Means as a line, one standard deviation on both sides as a band, cut at ``floor``."""
    places = [place for place, _ in points]
    means = [value.mean for _, value in points]
    marker = "o" if len(points) <= 40 else ""
    axes.plot(
        places,
        means,
        color=style.colour,
        linestyle=style.line,
        linewidth=style.width,
        marker=marker,
        markersize=3,
        label=label,
    )
    if any(value.sd is not None for _, value in points):
        spread = [value.sd or 0.0 for _, value in points]
        low = [max(mean - sd, floor) for mean, sd in zip(means, spread, strict=True)]
        high = [mean + sd for mean, sd in zip(means, spread, strict=True)]
        axes.fill_between(places, low, high, color=style.colour, alpha=0.18, linewidth=0)


def mark_stages(axes: Axes, stages: Sequence[str]) -> None:
    """The axis of a run's course: stage i lies between i and i + 1, named in its middle, with a line at its end."""
    for boundary in range(1, len(stages)):
        axes.axvline(boundary, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlim(0, len(stages) + 0.03)  # room for the last mark
    axes.set_xticks(
        [stage + 0.5 for stage in range(len(stages))], stages, rotation=30, ha="right", rotation_mode="anchor"
    )
    axes.tick_params(axis="x", length=0)


def add_legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend under all panels, each label once."""
    entries: dict[str, Artist] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    widest = max(map(len, entries)) / CHARACTERS_PER_INCH + 0.7
    at_most = max(1, int(figure.get_figwidth() / widest))
    lines = math.ceil(len(entries) / at_most)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=math.ceil(len(entries) / lines),
        frameon=False,
        fontsize=SMALL,
    )


def save(figure: Figure, out: Path) -> None:
    """Write the figure in the format that the end of the name says. Raises ConfigError if that is not possible."""
    kind = out.suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"--out {out}: no format {kind!r}; end the name with one of {', '.join(sorted(known))}")
    metadata = {"Date": None} if kind == "svg" else None  # the same figure is the same file
    try:
        write_file(out, lambda beside: figure.savefig(beside, format=kind, dpi=DOTS_PER_INCH, metadata=metadata))
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
