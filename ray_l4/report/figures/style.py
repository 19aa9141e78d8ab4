"""Common parts of all figures: colours, panels, bands and files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from ray_l4.errors import ConfigError, RayL4Error, UnwritableError
from ray_l4.report.aggregate import Statistic
from ray_l4.store.atomic import write_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

DOTS_PER_INCH = 150
SMALL = "small"
CHARACTERS_PER_INCH = 11.5
"""Density of a title in medium size."""
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#0072B2", "#D55E00", "#CC79A7"),
)
"""Okabe and Ito's colours, distinct with any kind of colour vision, without the yellow, which is too light on white."""
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
"""Variant -> its colour in every figure."""
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Style:
    """The look of a variant."""

    colour: str
    line: str = "-"
    width: float = 1.5
    """Points."""


def styles(variants: Iterable[str]) -> dict[str, Style]:
    """Return a style for each variant: its own if it has one, else the next that is free."""
    named = list(dict.fromkeys(variants))
    found = {variant: Style(_COLOUR_OF[variant]) for variant in named if variant in _COLOUR_OF}
    colours = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
    free = [Style(colour, line) for line, colour in product(_LINES, colours)]
    unused = iter([style for style in free if style not in found.values()])
    others = [variant for variant in named if variant not in found]
    if len(others) > len(free) - len(found):
        raise ConfigError(f"a figure has {len(free)} distinct styles, not {len(named)}; draw fewer variants")
    return found | {variant: next(unused) for variant in others}


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """Return an empty figure; width and height are in inches. Raises RayL4Error if matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RayL4Error("figures need matplotlib: python -m pip install matplotlib") from error
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text, which can be searched and follows the page's font
    matplotlib.rcParams["svg.hashsalt"] = "ray-l4"  # equal figures are equal files
    figure = Figure(figsize=(width, height), layout="constrained")
    lines = [line for text in (title, subtitle) for line in wrap(text, int(width * CHARACTERS_PER_INCH))]
    figure.suptitle("\n".join(lines), fontsize="medium")
    return figure


def panels(figure: Figure, blocks: Sequence[str], titles: Sequence[str], share_y: bool = True) -> dict[str, list[Axes]]:
    """Return a row of panels with these titles for each block, under the title of the block."""
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
    """Remove the frame above and to the right, and set numbers small."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)


def draw_band(
    axes: Axes, points: Sequence[tuple[float, Statistic]], style: Style, label: str, floor: float = float("-inf")
) -> None:
    """Draw means as a line, and one standard deviation on both sides as a band, cut at ``floor``."""
    positions = [position for position, _ in points]
    means = [value.mean for _, value in points]
    marker = "o" if len(points) <= 40 else ""
    axes.plot(
        positions,
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
        axes.fill_between(positions, low, high, color=style.colour, alpha=0.18, linewidth=0)


def mark_stages(axes: Axes, stages: Sequence[str]) -> None:
    """Label an axis in stages: stage i lies between i and i + 1, with its name in the middle and a line at its end."""
    for boundary in range(1, len(stages)):
        axes.axvline(boundary, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlim(0, len(stages) + 0.03)  # room for the last mark
    axes.set_xticks(
        [stage + 0.5 for stage in range(len(stages))], stages, rotation=30, ha="right", rotation_mode="anchor"
    )
    axes.tick_params(axis="x", length=0)


def add_legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """Add one legend below all panels, with each label once."""
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
    """Write the figure in the format of the file's suffix. Raises ConfigError if that is not possible."""
    kind = out.suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"--out {out}: unknown format {kind!r}; expected a suffix out of {', '.join(sorted(known))}")
    metadata = {"Date": None} if kind == "svg" else None  # equal figures are equal files
    try:
        write_file(out, lambda beside: figure.savefig(beside, format=kind, dpi=DOTS_PER_INCH, metadata=metadata))
    except UnwritableError as error:
        raise ConfigError(f"--out {error}") from error
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
