"""Sections about what happened during the steps: losses, disagreement, exchange."""

from __future__ import annotations

from ray_l4.methods import METHODS
from ray_l4.report.html import charts_steps
from ray_l4.report.html.blocks import Block, Note, Section, Table
from ray_l4.report.html.record import Record
from ray_l4.report.markdown import traffic

NO_STEPS = Note("This run left no figures of its steps.")
ALONE = Note("Not measured: the students of this method learn from nobody.")


def training(record: Record, prefix: str) -> Section:
    """Loss and learning rate, and the distance between the students."""
    return Section(f"{prefix}-training", "Training", _training(record, prefix))


def exchange(record: Record, prefix: str) -> Section:
    """What was sent, and who waited for whom."""
    return Section(f"{prefix}-exchange", "Exchange", _exchange(record, prefix))


def learns_from_others(record: Record) -> bool:
    """Whether the run's students have peers or teachers to learn from."""
    edges = record.summary.get("topology")
    if isinstance(edges, list):
        return bool(edges)
    method = METHODS.get(record.summary["method"])
    return method is None or bool(method.graph(len(record.students)).edges)


def _training(record: Record, prefix: str) -> list[Block]:
    if record.steps is None:
        return [NO_STEPS]
    stages = charts_steps.stage_spans(record.steps, record.stages)
    blocks: list[Block] = [
        charts_steps.training(f"{prefix}-loss", "Loss and learning rate over the steps", record.steps, stages)
    ]
    if not learns_from_others(record):
        return [*blocks, Note(f"Disagreement. {ALONE.text}")]
    title = "Disagreement of the students with those they learn from"
    return [*blocks, charts_steps.disagreement(f"{prefix}-disagreement", title, record.steps, stages)]


def _exchange(record: Record, prefix: str) -> list[Block]:
    if record.steps is None:
        return [NO_STEPS]
    if not learns_from_others(record):
        return [ALONE]
    totals = record.summary["exchange"]
    sent, received = (record.steps.total(name) for name in ("bytes_sent", "bytes_received"))
    rows = [
        *traffic(totals),
        ["published in all", f"{sent / 1e9:.3f} GB"],
        *([["received in all", f"{received / 1e9:.3f} GB"]] if "bytes_received_per_step" in totals else []),
        ["time students wait for their teachers", f"{100 * totals['wait_fraction']:.1f} %"],
    ]
    stages = charts_steps.stage_spans(record.steps, record.stages)
    title = "What each student publishes and receives, and its waiting"
    return [
        Table(["what", "how much"], rows),
        charts_steps.exchange(f"{prefix}-exchange-steps", title, record.steps, stages),
    ]
