"""Finished run directories for the tests of reports, written without a run by the functions that a run uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import get_method, num_students, stages_of
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.page import render
from ray_l4.report.summary import summarise
from ray_l4.store.atomic import write_json
from ray_l4.store.records import STEPS, write_replay, write_score, write_steps, write_timeline
from ray_l4.store.run_directory import Cell, RunDirectory, RunState

TASKS = ("woz.en", "own <b>&$x$", "e2enlg")
"""Users name their tasks freely: the second name would be markup in HTML and a formula in matplotlib."""
NASTY = "<script>alert('x')</script> \x07\u202e&amp;\nnext line"
"""Text such as a model may write."""
LONG_CONTEXT = "```\n# word " * 100
"""Longer than what is shown of a context, and with the marks that end a listing in Markdown."""
STEPS_OF_EPOCH = 5
TRAFFIC = {"bytes_sent": 2e6, "bytes_received": 3e6}
COMMAND = "ray-l4 run x.yaml --set 'name=<i>'"


def score_of(cell: Cell) -> float:
    """Return a score that differs from cell to cell."""
    return 10.0 * cell.stage + 3.0 * cell.epoch + 20.0 * TASKS.index(cell.task) + cell.student


def step_row(stage: int, epoch: int, step: int, student: int) -> dict[str, float]:
    """Return the figures of a step; the divergence of the answer head is zero in the last stage."""
    row = dict.fromkeys(STEPS.names, 1.0) | {"stage": stage, "epoch": epoch, "step": step, "student": student}
    return row | {"loss": 5.0 / (1 + step), "lr": 1e-3, "kd_qa": 0.0 if stage == 2 else 10.0**-step} | TRAFFIC


def replay_rows(tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Return four valid examples of each task, one for each reason to drop one, and an odd one."""
    rows = []
    for task in tasks:
        question = f"what is asked of {tasks.index(task)}?"
        texts = [(f"word{i} {question} __ans__ answer {NASTY}", "") for i in range(4)]
        texts += [("no end", "no answer token"), ("a __ans__ b __ans__ c", "several answer tokens")]
        if task != tasks[0]:
            texts.append(("stray what is asked of 0? __ans__ x", ""))
        rows += [
            {"task": task, "valid": not reason, "reason": reason, "text": f" __{task}__ {text}"}
            for text, reason in texts
        ]
    return [row | {"index": index, "student": 0, "ids": [1]} for index, row in enumerate(rows)]


SPANS = [
    {"lane": lane, "kind": kind, "label": "x", "start": start, "end": end}
    for lane, kind, start, end in (
        ("evaluator 0", "scoring", 1000.0, 1060.0),
        ("student 1", "training", 940.0, 1060.0),
        ("student 0", "training", 940.0, 1060.0),
        ("coordinator", "replay", 1030.0, 1060.0),
    )
]


@dataclass(frozen=True)
class Parts:
    """The optional parts of a run directory."""

    timeline: bool = True
    item_scores: bool = True
    asked: bool = True
    steps: bool = True


ALL = Parts()


def write_run(path: Path, method: str = "l4", parts: Parts = ALL, **settings: Any) -> RunDirectory:
    """Write a finished run of two epochs a stage, all of them scored."""
    experiment = ExperimentConfig.model_validate(
        {
            "name": "by hand",
            "method": method,
            "stream": list(TASKS),
            "model": {"from_scratch": {}},
            "training": {"epochs": 2},
            "evaluation": {"when": "epoch"},
        }
        | settings
    )
    manifest = {"command": COMMAND, "versions": {"torch": "2.13.0"}, "platform": "Linux", "python": "3.11"}
    run = RunDirectory.create(path, experiment, ClusterConfig(), manifest | {"training_examples": {TASKS[0]: 600}})
    kind = get_method(method)
    for stage in range(len(stages_of(experiment))):
        scored = [TASKS[stage]] if kind.stages == "separate" else TASKS
        _write_scores(run, stage, range(num_students(experiment)), scored, parts)
        if parts.steps:
            _write_steps(run, stage, range(num_students(experiment)))
        if kind.replay != "none" and stage:
            write_replay(run, stage, replay_rows(TASKS[:stage]))
    if parts.timeline:
        write_timeline(run, SPANS)
    run.save_state(RunState(stages_done=3, wall_seconds=61.0, peak_memory_bytes={"student-0": 512 * 2**20}))
    write_json(run.path / "summary.json", summarise(run))
    return run


def _write_scores(run: RunDirectory, stage: int, students: Sequence[int], tasks: Sequence[str], parts: Parts) -> None:
    for cell in (Cell(stage, epoch, student, task) for epoch in (1, 2) for student in students for task in tasks):
        predictions: dict[str, list[Any]] = {
            "sample_id": ["fair", "right", "worst"],
            "prediction": ["nearly", "same", NASTY],
            "references": [["nearly so", "so"], ["other", " same "], ["gold"]],
        }
        if parts.asked:
            predictions["context"] = ["short", "", LONG_CONTEXT]
            predictions["question"] = ["fair?", "right?", f"worst? {NASTY}"]
        if parts.item_scores:
            predictions["score"] = [50.0, 100.0, 0.0]
        write_score(run, cell, {"headline": "em", "values": {"em": score_of(cell)}}, predictions)


def _write_steps(run: RunDirectory, stage: int, students: Sequence[int]) -> None:
    for epoch in (1, 2):
        first = (epoch - 1) * STEPS_OF_EPOCH
        steps = range(first, first + STEPS_OF_EPOCH)
        write_steps(run, stage, epoch, [step_row(stage, epoch, s, student) for s in steps for student in students])


def read(run: RunDirectory) -> FinishedRun:
    """Read a run directory."""
    return FinishedRun.open(run.path)


def page_of(*runs: RunDirectory) -> str:
    """Return the page about ``runs``."""
    return render([read(run) for run in runs])


def as_an_older_version_left_it(run: RunDirectory) -> None:
    """Remove what version 0.1.0 did not write yet."""
    change_summary(run, lambda summary: {key: summary[key] for key in summary if key not in ("variant", "stages")})
    change_summary(run, lambda summary: summary | {"exchange": {"bytes_per_step": 2e6, "wait_fraction": 0.25}})
    for path in (run.path / "steps").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns("bytes_received").replace_schema_metadata(None), path)


def change_summary(run: RunDirectory, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Rewrite the summary of a run."""
    write_json(run.path / "summary.json", dict(change(run.summary())))
