"""Small finished runs and sweeps, written by the functions that a run uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import num_students, stages_of
from ray_l4.report.summary import summarise
from ray_l4.store.atomic import write_json
from ray_l4.store.records import write_score, write_steps
from ray_l4.store.run_directory import Cell, RunDirectory, RunState

TASKS = ("woz.en", "wikisql", "cnn_dailymail")
SCRATCH = {"from_scratch": {"layers": 2, "width": 8, "heads": 2}}

Score = Callable[[int, int, int, str], float | None]
"""(stage, epoch, student, task) -> score in percent; None where it was not scored."""
Divergence = Callable[[int, int, int], float]
"""(stage, epoch, step within the epoch) -> divergence per token."""


def fading(stage: int, epoch: int, student: int, task: str, stream: Sequence[str] = TASKS) -> float:
    """Return 80 in the last epoch of learning a task, less before, 10 less with each later task; plus the student."""
    learned = list(stream).index(task)
    if stage < learned:
        return 1.0
    return 80.0 - 10 * (stage - learned) - 5 * (2 - epoch) * (stage == learned) + student


@patch("os.fsync", lambda file: None)  # takes half of the time, and a test need not survive a power cut
def write_run(
    folder: Path,
    method: str = "l4",
    seed: int = 0,
    stream: Sequence[str] = TASKS,
    score: Score | None = None,
    divergence: Divergence = lambda stage, epoch, step: 0.1 / (1 + step),
    answers: Mapping[str, Sequence[float]] | None = None,
    finished: bool = True,
    seconds: float = 3600.0,
    epochs: int = 2,
    train: int = 100,
    **settings: Any,
) -> Path:
    """Write a run of two epochs a stage and four steps an epoch. ``answers``: scores of each task's answers."""
    groups: dict[str, Any] = {"model": SCRATCH, "evaluation": {"when": "epoch"}} | settings
    groups["training"] = {"epochs": epochs} | groups.get("training", {})
    experiment = ExperimentConfig.model_validate(
        {"method": method, "seed": seed, "stream": [{"name": name, "train": train} for name in stream], **groups}
    )
    run = RunDirectory.create(folder, experiment, ClusterConfig(), {"command": "by hand"})
    score = score or (lambda stage, epoch, student, task: fading(stage, epoch, student, task, stream))
    peers = range(num_students(experiment))
    for stage, _ in enumerate(stages_of(experiment)):
        for epoch in range(1, epochs + 1):
            for cell in (Cell(stage, epoch, student, task) for student in peers for task in stream):
                value = score(cell.stage, cell.epoch, cell.student, cell.task)
                if value is not None:
                    _write_cell(run, cell, value, (answers or {}).get(cell.task, [value]))
            rows = [
                {"stage": stage, "epoch": epoch, "step": 4 * (epoch - 1) + step, "student": student, "bytes_sent": 8.0}
                | {name: divergence(stage, epoch, step) for name in ("kd_qa", "kd_lm")}
                | dict.fromkeys(("forward_seconds", "wait_seconds", "backward_seconds", "idle_seconds"), 1.0)
                for step in range(4)
                for student in peers
            ]
            write_steps(run, stage, epoch, rows)
    peaks = {**{f"student-{student}": 2 * 10**9 for student in peers}, "evaluator-0": 10**9}
    run.save_state(RunState(stages_done=len(stages_of(experiment)), wall_seconds=seconds, peak_memory_bytes=peaks))
    if finished:
        write_json(folder / "summary.json", summarise(run))
    return folder


def _write_cell(run: RunDirectory, cell: Cell, value: float, items: Sequence[float]) -> None:
    place = {"stage": cell.stage, "epoch": cell.epoch, "student": cell.student, "task": cell.task}
    samples = [f"{cell.task}-{index}" for index in range(len(items))]
    texts = {"prediction": ["a"] * len(items), "references": [["a"]] * len(items)}
    table = {"sample_id": samples, **texts, "score": list(items)}
    write_score(run, cell, {**place, "headline": "em", "values": {"em": value}, "examples": len(items)}, table)


def write_sweep(
    folder: Path,
    trials: Mapping[str, Mapping[str, Any]],
    table: str | None = None,
    scale: float = 1.0,
    against: str | None = None,
) -> Path:
    """Write a sweep's folder with these trials: folder -> arguments of ``write_run``, or {} for a new trial."""
    for name, told in trials.items():
        if told:
            write_run(folder / name, **told)
    entries = [{"folder": name} for name in trials]
    record = {"name": "sweep", "title": "by hand", "scale": scale, "table": table, "trials": entries}
    write_json(folder / "sweep.json", record | ({} if against is None else {"against": against}))
    return folder
