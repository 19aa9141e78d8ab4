"""Sections about the steps of a run: losses, disagreement, exchange."""

from __future__ import annotations

from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html import charts_steps
from ray_l4.report.html.blocks import Block, Note, Section, Table
from ray_l4.report.markdown import traffic

NO_STEPS = Note("This run directory holds no figures of steps.")
ALONE = Note("Not measured: the students of this method learn from nobody.")


def training(run: FinishedRun, prefix: str) -> Section:
    """Return loss, learning rate, and the divergence between the students."""
    return Section(f"{prefix}-training", "Training", _training(run, prefix))


def exchange(run: FinishedRun, prefix: str) -> Section:
    """Return the traffic between the students, and their waiting for each other."""
    return Section(f"{prefix}-exchange", "Exchange", _exchange(run, prefix))


def _training(run: FinishedRun, prefix: str) -> list[Block]:
    if run.steps is None:
        return [NO_STEPS]
    stages = charts_steps.stage_spans(run.steps, run.stages)
    blocks: list[Block] = [
        *(Note(f"Warning: {warning}") for warning in run.training_warnings),
        charts_steps.training(f"{prefix}-loss", "Loss and learning rate over the steps", run.steps, stages),
    ]
    if not run.learns_from_others:
        return [*blocks, Note(f"Disagreement. {ALONE.text}")]
    title = "Disagreement of the students with those they learn from"
    return [*blocks, charts_steps.disagreement(f"{prefix}-disagreement", title, run.steps, stages)]


def _exchange(run: FinishedRun, prefix: str) -> list[Block]:
    if run.steps is None:
        return [NO_STEPS]
    if not run.learns_from_others:
        return [ALONE]
    sent, received = (run.steps.total(name) for name in ("bytes_sent", "bytes_received"))
    rows = [
        *traffic(run.exchange),
        ["published in total", f"{sent / 1e9:.3f} GB"],
        *([["received in total", f"{received / 1e9:.3f} GB"]] if "bytes_received_per_step" in run.exchange else []),
        ["time students wait for their teachers", f"{100 * run.exchange['wait_fraction']:.1f} %"],
    ]
    stages = charts_steps.stage_spans(run.steps, run.stages)
    title = "Traffic and waiting of each student"
    return [
        Table(["figure", "value"], rows),
        charts_steps.exchange(f"{prefix}-exchange-steps", title, run.steps, stages),
    ]
