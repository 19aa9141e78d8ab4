"""Section about the general text: every student's perplexity before the first stage, and after every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.general import DIGITS, general_note, general_rows
from ray_l4.report.html.blocks import Chart, Note, Section, Table
from ray_l4.report.html.drawing import LEGEND_ROW, MARKERS, chart, colour, dashes, legend, legend_rows
from ray_l4.report.html.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE = "before"
"""Label of the models that students begin with."""


def general(run: FinishedRun, prefix: str) -> Section | None:
    """Return the section; None for a run without a general text."""
    if not run.general:
        return None
    courses = {f"student {student}": run.general_course(student) for student in run.students}
    title = "Perplexity on general text before the first stage and after every stage"
    drawing = _courses(f"{prefix}-general-courses", title, [BEFORE, *run.stages], courses)
    return Section(
        f"{prefix}-general", "General text", [Note(general_note(run.general)), Table(*general_rows(run)), drawing]
    )


def _courses(id: str, title: str, places: Sequence[str], courses: Mapping[str, Sequence[float | None]]) -> Chart:
    """Chart a line for each student over the ``places`` at which it was measured; None leaves a gap."""

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, values in enumerate(courses.values()):
            heights = [float("nan") if value is None else value for value in values]
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(range(len(places)), heights, dashes(index), color=colour(index), marker=marker)
        axes.set_xticks(
            range(len(places)), [visible(place) for place in places], rotation=30, ha="right", rotation_mode="anchor"
        )
        axes.set_ylabel("perplexity")
        legend(figure, axes.get_lines(), list(courses))

    lines = [
        f"{name}: " + ", ".join("–" if value is None else f"{value:.{DIGITS}f}" for value in values)
        for name, values in courses.items()
    ]
    height = 3.2 + LEGEND_ROW * legend_rows(list(courses))
    return chart(id, title, "; ".join(lines), plot, height)
