"""The HTML page about one run, or about several compared. It holds all it shows and loads nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ray_l4.report.finished_run import FinishedRun, labels
from ray_l4.report.html import (
    section_cost,
    section_general,
    section_runs,
    section_scores,
    section_text,
    section_training,
    section_validation,
)
from ray_l4.report.html.blocks import Section
from ray_l4.report.html.text import visible
from ray_l4.report.markdown import number

SECTIONS = (
    section_scores.summary,
    section_scores.scores,
    section_scores.students,
    section_runs.teachers,
    section_scores.curves,
    section_general.general,
    section_training.training,
    section_validation.validation,
    section_text.replay,
    section_text.answers,
    section_training.exchange,
    section_cost.cost,
    section_cost.configuration,
)
"""The sections about a run, in order. Each takes the run and a prefix for ids."""

MOST_PARTS = 12
"""Largest number of runs that a page shows in full. The drawings of a run take a second and half a megabyte."""
OMITTED = (
    f"More than {MOST_PARTS} runs are not shown one by one; ray-l4 report RUN_DIR writes the page of a single one."
)


@dataclass(frozen=True)
class Part:
    """The part of the page about one run."""

    id: str
    title: str
    headline: str
    """The main result in a few words, shown while the part is folded."""
    sections: Sequence[Section]


def render(runs: Sequence[FinishedRun], against: str | None = None) -> str:
    """Return the page about ``runs``, at least one, as HTML: of several, a comparison and the parts folded below it.

    The comparison of the runs of one sweep can hold the paired differences to the variant ``against``.
    Raises RunDirectoryError if a run is damaged, ConfigError if the runs learned different tasks.
    """
    comparison = section_runs.comparison(runs, against) if len(runs) > 1 else None
    shown = runs if len(runs) <= MOST_PARTS else []
    parts = [
        Part(f"run-{index}", f"{label}{run.scale_note}", _headline(run), _sections(run, f"run-{index}"))
        for index, (label, run) in enumerate(zip(labels(shown), shown, strict=True))
    ]
    environment = Environment(
        loader=PackageLoader("ray_l4.report.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    return environment.get_template("page.html.j2").render(
        title=_title(runs),
        style=Markup(resources.files("ray_l4.report.html").joinpath("page.css").read_text(encoding="utf-8")),
        comparison=comparison,
        parts=parts,
        omitted="" if shown else OMITTED,
    )


def _sections(run: FinishedRun, prefix: str) -> list[Section]:
    made = [make(run, prefix) for make in SECTIONS]
    return [section for section in made if section is not None]


def _headline(run: FinishedRun) -> str:
    average, forgetting = (run.figure(name, 0) for name in ("average_accuracy", "forgetting"))
    return f"average {number(average)}, forgetting {number(forgetting)}"


def _title(runs: Sequence[FinishedRun]) -> str:
    first = runs[0]
    orders = len({run.stream for run in runs})
    stream = " → ".join(first.stream) if orders == 1 else f"{', '.join(first.tasks)} in {orders} orders"
    notes = {run.scale_note for run in runs}
    scale = notes.pop() if len(notes) == 1 else ", at different scales"
    if len(runs) > 1:
        return f"{len(runs)} runs on {stream}{scale}"
    return f"{first.name}: {first.variant} on {stream}, seed {first.seed}{scale}"
