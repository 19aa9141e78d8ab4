"""Forgetting of each task by every variant (L4, Table 3, as bars)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import AVERAGE, ResultBlock
from ray_l4.report.caption import setting, title
from ray_l4.report.figures.style import SMALL, add_legend, new_figure, panels, styles
from ray_l4.report.markdown import number
from ray_l4.report.measures import forgetting
from ray_l4.report.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUP_WIDTH = 0.84
"""Width of the bars of a task together, where 1 is the distance between two tasks."""


def draw(results: Results, student: int) -> Figure:
    """Draw a panel for each order: for every task but the last and for their mean, a group of bars of all variants.

    Raises ConfigError if no run learned several tasks in an order.
    """
    table = forgetting(results, [student])
    if not table.blocks:
        raise ConfigError("forgetting needs runs that learn at least two tasks one after another; there is none")
    num_bars = max(len(block.rows) for block in table.blocks) * len(results.tasks)
    highest = "epoch" if results.over_epochs else "task"
    subject = title(results, f"forgetting: highest score after any {highest} minus final score (%)")
    figure = new_figure(max(6.5, 1.5 + 0.5 * num_bars), 3.2 * len(table.blocks) + 1.2, subject, setting(results))
    rows = panels(figure, [block.title for block in table.blocks], [""])
    look = {row.label: row.label.split(", student")[0] for block in table.blocks for row in block.rows}
    colours = {label: styles(results.variants())[variant].colour for label, variant in look.items()}
    for block in table.blocks:
        _bars(
            rows[block.title][0],
            block,
            [name for name in table.columns if any(r.cells[name] for r in block.rows)],
            colours,
        )
    add_legend(figure, [row[0] for row in rows.values()])
    return figure


def _bars(axes: Axes, block: ResultBlock, columns: list[str], colours: dict[str, str]) -> None:
    width = GROUP_WIDTH / len(block.rows)
    for index, row in enumerate(block.rows):
        cells = [(task, cell) for task, name in enumerate(columns) if (cell := row.cells[name])]
        positions = [task + (index - (len(block.rows) - 1) / 2) * width for task, _ in cells]
        means, spread = [cell.mean for _, cell in cells], [cell.sd or 0.0 for _, cell in cells]
        drawn = axes.bar(
            positions,
            means,
            width * 0.92,
            yerr=spread if any(spread) else None,
            color=colours[row.label],
            label=row.label,
            error_kw={"elinewidth": 0.8, "ecolor": "0.35"},
        )
        axes.bar_label(drawn, [number(mean) for mean in means], padding=2, fontsize="x-small")
    axes.set_xticks(range(len(columns)), ["mean of these" if name == AVERAGE else name for name in columns])
    axes.tick_params(axis="x", length=0, labelsize=SMALL)
    axes.set_ylabel("points")
    axes.margins(y=0.12)
