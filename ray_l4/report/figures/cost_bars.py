"""Peak memory and time of every variant (L4, Table 8, as bars)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_l4.report.aggregate import Statistic, statistic
from ray_l4.report.caption import setting, title
from ray_l4.report.figures.style import SMALL, new_figure, styles, tidy
from ray_l4.report.measures import HOURS, MEMORY, cost
from ray_l4.report.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 0.72
"""Height of a bar, where 1 is the distance between two bars."""
LABELS = {MEMORY: "peak memory without evaluators (GB)", HOURS: "time (hours)"}


def draw(results: Results, student: int) -> Figure:
    """Draw a bar for each variant in two panels. The beginning of a bar of hours, hatched, is the teachers' share.

    ``student`` is not used.
    """
    (block,) = cost(results, [student]).blocks
    subject = title(results, "memory and time")
    figure = new_figure(9.0, 1.6 + 0.42 * len(block.rows), subject, setting(results))
    panels = dict(zip(LABELS, figure.subplots(1, 2, sharey=True), strict=True))
    look = styles(results.variants())
    for name, axes in panels.items():
        _bars(axes, {row.label: row.cells[name] for row in block.rows}, {v: look[v].colour for v in look})
        axes.set_xlabel(LABELS[name])
    for index, row in enumerate(block.rows):
        hours = _teachers_hours(results, row.label)
        if hours:
            panels[HOURS].barh(index, hours, HEIGHT, color="none", hatch="////", edgecolor="white", linewidth=0)
            panels[HOURS].set_xlabel(f"{LABELS[HOURS]}; hatched: of these, training the teachers")
    panels[MEMORY].invert_yaxis()
    return figure


def _teachers_hours(results: Results, variant: str) -> float:
    """Return the mean time that the teachers of a variant's runs took; 0 without teachers."""
    teachers = [run.teachers for run in results.runs if run.variant == variant]
    hours = statistic(each.wall_seconds / 3600 for each in teachers if each)
    return hours.mean if hours else 0.0


def _bars(axes: Axes, cells: dict[str, Statistic | None], colours: dict[str, str]) -> None:
    for index, (label, cell) in enumerate(cells.items()):
        if cell:
            axes.barh(
                index,
                cell.mean,
                HEIGHT,
                xerr=cell.sd,
                color=colours[label],
                error_kw={"elinewidth": 0.8, "ecolor": "0.35"},
            )
            end = cell.mean + (cell.sd or 0.0)
            axes.annotate(cell.text(2), (end, index), (4, 0), textcoords="offset points", va="center", fontsize=SMALL)
    axes.set_yticks(range(len(cells)), list(cells))
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    tidy(axes)
