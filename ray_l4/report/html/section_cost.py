"""Sections about time and memory, and about what it takes to repeat the run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.blocks import Block, Chart, Fold, Listing, Note, Section, Table
from ray_l4.report.html.charts_cost import Span, stacked_bars, timeline
from ray_l4.report.markdown import MIB
from ray_l4.report.steps import SECONDS

LANES = ("coordinator", "student", "evaluator")
"""Kinds of processes, from top to bottom in a timeline."""


def cost(run: FinishedRun, prefix: str) -> Section:
    """Return the activity of every process over time, and the time and memory that each needed."""
    return Section(f"{prefix}-cost", "Time and memory", [*_timeline(run, prefix), *_processes(run, prefix)])


def configuration(run: FinishedRun, prefix: str) -> Section:
    """Return the files that repeat the run, with the command and the versions that the summary shows."""
    blocks: list[Block] = [
        Fold("Experiment (config.yaml)", [Listing(run.text("config.yaml"))]),
        Fold("Cluster profile (cluster.yaml)", [Listing(run.text("cluster.yaml"))]),
    ]
    return Section(f"{prefix}-configuration", "Configuration", blocks)


def timeline_spans(run: FinishedRun) -> list[Span] | None:
    """Return the run's timeline in the order of LANES; None for a run without one."""
    table = run.timeline()
    if table is None:
        return None
    spans = [Span(row["lane"], row["kind"], row["start"], row["end"]) for row in table.to_pylist()]
    return sorted(spans, key=lambda span: (_lane_order(span.lane), span.start))


def _lane_order(lane: str) -> tuple[int, list[int], str]:
    """Return a key that sorts lanes by kind of process, then by number."""
    first = lane.split()[0] if lane.split() else ""
    return (LANES.index(first) if first in LANES else len(LANES), [int(n) for n in re.findall(r"\d+", lane)], lane)


def _timeline(run: FinishedRun, prefix: str) -> list[Block]:
    spans = timeline_spans(run)
    if not spans:
        return [Note("No timeline: this run directory has no timeline.parquet, or an empty one.")]
    chart = timeline(f"{prefix}-timeline", "Timeline", spans)
    return [chart, Fold("Seconds of each process", [_seconds(spans)])]


def _seconds(spans: Sequence[Span]) -> Table:
    """Return a table of the seconds that each process spent on each activity."""
    kinds, lanes = list(dict.fromkeys(s.kind for s in spans)), list(dict.fromkeys(s.lane for s in spans))
    seconds = {(lane, kind): 0.0 for lane in lanes for kind in kinds}
    for span in spans:
        seconds[span.lane, span.kind] += span.end - span.start
    return Table(["process", *kinds], [[lane, *(f"{seconds[lane, kind]:.1f}" for kind in kinds)] for lane in lanes])


def _processes(run: FinishedRun, prefix: str) -> list[Chart]:
    charts = []
    if run.steps is not None:
        students = run.steps.students()
        own = [run.steps.of_student(student) for student in students]
        parts = {name.removesuffix("_seconds"): [steps.total(name) for steps in own] for name in SECONDS}
        caption = "wait: for the teachers' predictions. idle: between an update and the next forward pass."
        names = [f"student {student}" for student in students]
        charts.append(stacked_bars(f"{prefix}-time", "Time of each student's steps", names, parts, "seconds", caption))
    peaks = run.peak_memory_bytes
    if peaks:
        memory = {"peak": [peak / MIB for peak in peaks.values()]}
        charts.append(stacked_bars(f"{prefix}-memory", "Peak memory of each process", list(peaks), memory, "MiB"))
    return charts
