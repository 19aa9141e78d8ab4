"""Sections about time and memory, and about how to repeat the run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ray_l4.report.html.blocks import Block, Chart, Fold, Listing, Note, Section, Table
from ray_l4.report.html.charts_cost import Span, stacked_bars, timeline
from ray_l4.report.html.record import Record, read_rows
from ray_l4.report.html.steps import SECONDS
from ray_l4.report.markdown import MIB

LANES = ("coordinator", "student", "evaluator")
"""From above in a timeline."""


def cost(record: Record, prefix: str) -> Section:
    """Who did what when, and what each process needed."""
    return Section(f"{prefix}-cost", "Time and memory", [*_timeline(record, prefix), *_actors(record, prefix)])


def configuration(record: Record, prefix: str) -> Section:
    """What it takes to repeat the run, beside the command, which the summary shows."""
    manifest = record.manifest
    software = [[name, str(version)] for name, version in manifest.get("versions", {}).items()]
    software += [[name, str(manifest[name])] for name in ("python", "platform") if name in manifest]
    counts = [
        [
            task,
            str(manifest.get("training_examples", {}).get(task, "–")),
            str(manifest.get("test_examples", {}).get(task, "–")),
        ]
        for task in record.tasks
    ]
    blocks: list[Block] = [
        Table(["software", "version"], software),
        Table(["task", "training examples", "test examples"], counts),
        Fold("Experiment (config.yaml)", [Listing(record.text("config.yaml"))]),
        Fold("Cluster profile (cluster.yaml)", [Listing(record.text("cluster.yaml"))]),
    ]
    return Section(f"{prefix}-configuration", "Configuration", blocks)


def read_spans(record: Record) -> list[Span] | None:
    """The run's timeline in the order of LANES; None for a run that left none."""
    rows = read_rows(record.path / "timeline.parquet", ("lane", "kind", "start", "end"))
    if rows is None:
        return None
    spans = [Span(row["lane"], row["kind"], row["start"], row["end"]) for row in rows]
    return sorted(spans, key=lambda span: (_place(span.lane), span.start))


def _place(lane: str) -> tuple[int, list[int], str]:
    """Where a lane stands: by kind of process, then by number."""
    first = lane.split()[0] if lane.split() else ""
    return (LANES.index(first) if first in LANES else len(LANES), [int(n) for n in re.findall(r"\d+", lane)], lane)


def _timeline(record: Record, prefix: str) -> list[Block]:
    spans = read_spans(record)
    if not spans:
        return [Note("No timeline: there is no timeline.parquet in this run directory, or nothing in it.")]
    chart = timeline(f"{prefix}-timeline", "Timeline", spans)
    return [chart, Fold("Seconds of each process", [_busy(spans)])]


def _busy(spans: Sequence[Span]) -> Table:
    kinds, lanes = list(dict.fromkeys(s.kind for s in spans)), list(dict.fromkeys(s.lane for s in spans))
    seconds = {(lane, kind): 0.0 for lane in lanes for kind in kinds}
    for span in spans:
        seconds[span.lane, span.kind] += span.end - span.start
    return Table(["process", *kinds], [[lane, *(f"{seconds[lane, kind]:.1f}" for kind in kinds)] for lane in lanes])


def _actors(record: Record, prefix: str) -> list[Chart]:
    charts = []
    if record.steps is not None:
        students = record.steps.students()
        own = [record.steps.of(student) for student in students]
        parts = {name.removesuffix("_seconds"): [steps.total(name) for steps in own] for name in SECONDS}
        caption = "wait: for the teachers' predictions. idle: between an update and the next forward pass."
        names = [f"student {student}" for student in students]
        charts.append(stacked_bars(f"{prefix}-time", "Time of each student's steps", names, parts, "seconds", caption))
    peaks = record.summary["peak_memory_bytes"]
    if peaks:
        memory = {"peak": [peak / MIB for peak in peaks.values()]}
        charts.append(stacked_bars(f"{prefix}-memory", "Peak memory of each process", list(peaks), memory, "MiB"))
    return charts
