"""Matplotlib drawings as SVG for use inside a page: colours follow the page's light or dark scheme, text stays text,
and ids are unique on the page. Matplotlib is imported when the first chart is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from markupsafe import Markup

from ray_l4.report.html.blocks import Chart
from ray_l4.report.html.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, HEAT = "#1b1f24", "#0072b3"
SERIES = ("#0072b2", "#c2570c", "#00805a", "#a3508f", "#8a6d00", "#2f86ad", "#7a5cc4", "#6b6f76")
"""Okabe and Ito's colours, darkened for contrast with white. The style sheet has a counterpart for dark pages."""
Dashes = Literal["-", "--", "-.", ":"]
DASHES: tuple[Dashes, ...] = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PAGE_COLOURS = {INK: "currentColor", HEAT: "var(--heat)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
WIDTH = 4.5
"""Inches of most drawings, at least as many as its page shows: 324 points, so that one fits on a phone with its text in
full size."""
TEXT, SMALL = 12.0, 11.0
"""Sizes of text in points. A page never shows a drawing smaller than a pixel a point; it can be scrolled instead."""
LEGEND_ROW = 0.23
"""Inches of a row of the legend."""
LINE = 51
"""Number of characters of a line across a drawing."""

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ray-l4",
    "font.family": "sans-serif",
    "font.size": TEXT,
    "text.parse_math": False,
    "axes.titlesize": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.handlelength": 2.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{name}": INK for name in ("edgecolor", "labelcolor", "titlecolor")},
}
"""Settings of matplotlib for all drawings, besides the colour cycle."""
_SVG = "http://www.w3.org/2000/svg"


def colour(index: int) -> str:
    """Return the colour of the series with this index; colours repeat after eight."""
    return SERIES[index % len(SERIES)]


def dashes(index: int) -> Dashes:
    """Return the line style of the series with this index. Neighbours differ: both of two equal lines can be seen."""
    return DASHES[index % len(DASHES)]


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Add a legend below the figure, in as many columns as there is room for."""
    shown = [visible(name) for name in names]
    figure.legend(handles, shown, loc="outside lower center", ncols=_columns(shown))


def legend_rows(names: Sequence[str]) -> int:
    """Return the number of lines that ``legend`` takes."""
    return -(-len(names) // _columns([visible(name) for name in names]))


def _columns(names: Sequence[str]) -> int:
    return max(1, min(4, len(names), LINE // (8 + max(map(len, names)))))


def chart(
    id: str,
    title: str,
    alternative: str,
    plot: Callable[[Figure], None],
    height: float,
    caption: str = "",
    width: float = WIDTH,
) -> Chart:
    """Return a drawing of ``width`` by ``height`` inches.

    ``plot`` draws on the figure; ``alternative`` is its text alternative.
    """
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with mpl.rc_context(_SETTINGS | {"axes.prop_cycle": cycler(color=SERIES)}):
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _adapt(root, id)
    _describe(root, id, visible(title), visible(alternative))
    for prefix, address in (("", _SVG), ("xlink", "http://www.w3.org/1999/xlink")):
        ElementTree.register_namespace(prefix, address)
    return Chart(id, title, Markup(ElementTree.tostring(root, encoding="unicode")), caption)


def _adapt(root: ElementTree.Element, id: str) -> None:
    """Give the drawing the page's colours and ids of its own, and remove what would affect the rest of the page."""
    for name in ("metadata", "defs"):  # matplotlib's first defs hold a style sheet, which would apply to the page
        for child in root.findall(f"{{{_SVG}}}{name}"):
            if name == "metadata" or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{id}-{value}")
            elif key == "style":
                for fixed, ours in _PAGE_COLOURS.items():
                    value = value.replace(fixed, ours)
                element.set(key, value.replace("url(#", f"url(#{id}-"))
            elif key == "clip-path" or key.endswith("href"):
                element.set(key, value.replace("#", f"#{id}-", 1))


def _describe(root: ElementTree.Element, id: str, title: str, alternative: str) -> None:
    del root.attrib["width"], root.attrib["height"]  # the page decides; the viewBox keeps the proportions
    smallest = round(float(root.attrib["viewBox"].split()[2]))
    root.set("style", f"min-width: {smallest}px")
    root.set("role", "img")
    root.set("aria-labelledby", f"{id}-title {id}-alternative")
    for place, (name, key, text) in enumerate((("title", "title", title), ("desc", "alternative", alternative))):
        element = ElementTree.Element(f"{{{_SVG}}}{name}", {"id": f"{id}-{key}"})
        element.text = text
        root.insert(place, element)
