"""One page about one run, or about several side by side. It holds all it shows and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ray_l4.report.html import section_cost, section_runs, section_samples, section_scores, section_training
from ray_l4.report.html.blocks import Section
from ray_l4.report.html.record import Record, read_record
from ray_l4.report.html.text import visible
from ray_l4.report.markdown import scale_note
from ray_l4.store.run_directory import RunDirectory

SECTIONS = (
    section_scores.summary,
    section_scores.scores,
    section_scores.peers,
    section_runs.teachers,
    section_scores.curves,
    section_training.training,
    section_samples.replay,
    section_samples.answers,
    section_training.exchange,
    section_cost.cost,
    section_cost.configuration,
)
"""Of each run, in this order."""


@dataclass(frozen=True)
class Part:
    """A run's share of the page."""

    id: str
    title: str
    sections: Sequence[Section]


def render(runs: Sequence[RunDirectory]) -> str:
    """The page about ``runs``, at least one, which learned the same stream, as HTML.

    Raises:
        RunDirectoryError: a run did not finish, or is damaged.
    """
    records = [read_record(run) for run in runs]
    parts = [
        Part(f"run-{number}", f"{title}{scale_note(record.manifest)}", _sections(record, f"run-{number}"))
        for number, (title, record) in enumerate(zip(section_runs.labels(records), records, strict=True))
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
        title=_title(records),
        style=Markup(resources.files("ray_l4.report.html").joinpath("page.css").read_text(encoding="utf-8")),
        comparison=section_runs.comparison(records) if len(records) > 1 else None,
        parts=parts,
    )


def _sections(record: Record, prefix: str) -> list[Section]:
    made = [make(record, prefix) for make in SECTIONS]
    return [section for section in made if section is not None]


def _title(records: Sequence[Record]) -> str:
    first = records[0]
    stream = " → ".join(first.tasks)
    notes = {scale_note(record.manifest) for record in records}
    scale = notes.pop() if len(notes) == 1 else ", at different scales"
    if len(records) > 1:
        return f"{len(records)} runs on {stream}{scale}"
    return f"{first.summary['name']}: {first.variant} on {stream}, seed {first.summary['seed']}{scale}"
