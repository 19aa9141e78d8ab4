"""The result of a run as one record, computed from its run directory alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import get_method, graph_name, num_students, stage_names
from ray_l4.metrics.continual import (
    ScoreMatrix,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
)
from ray_l4.store.run_directory import RunDirectory

_FIGURES: Mapping[str, Callable[[ScoreMatrix], float | None]] = {
    "average_incremental_accuracy": average_incremental_accuracy,
    "forgetting": forgetting,
    "backward_transfer": backward_transfer,
}
_SECONDS = ("forward_seconds", "wait_seconds", "backward_seconds", "idle_seconds")


def summarise(run: RunDirectory) -> dict[str, Any]:
    """Everything ``summary.json`` holds. Scores are percentages; a figure that is not defined is None.

    ``topology``: who learns from whom, by name or as [teacher, student] pairs.
    ``score_matrix``: student -> rows after each stage, columns the tasks in the order of the stream.
    ``restarts``: how often a stage was learned again because a student was lost.
    ``lost_students``: student -> how it was lost; the others went on without it, learning from the mean of those left.
    ``exchange.bytes_per_step``: what one student publishes in one step, on average.
    ``exchange.bytes_received_per_step``: what its teachers, or peers, send it; 0 for a run that did not count it yet.
    ``exchange.wait_fraction``: share of the students' time in which they wait for their teachers' predictions.
    """
    experiment, state = run.experiment(), run.state()
    tasks, stages = [task.name for task in experiment.stream], stage_names(experiment)
    peers = num_students(experiment)
    epochs = experiment.training.epochs
    matrices = {str(student): score_matrix(run, student, tasks, epochs, len(stages)) for student in range(peers)}
    finals = {student: _final(matrix, experiment) for student, matrix in matrices.items()}
    return {
        "name": experiment.name,
        "method": experiment.method,
        "variant": experiment.variant or experiment.method,
        "stream": tasks,
        "stages": stages,
        "peers": peers,
        "topology": graph_name(experiment),
        "seed": experiment.seed,
        "score_matrix": matrices,
        "final": {student: dict(zip(tasks, final, strict=True)) for student, final in finals.items()},
        "average_accuracy": {student: average_accuracy([final]) for student, final in finals.items()},
        **{name: {s: figure(matrix) for s, matrix in matrices.items()} for name, figure in _FIGURES.items()},
        **_over_epochs(run, experiment, matrices),
        "wall_seconds": state.wall_seconds,
        "peak_memory_bytes": state.peak_memory_bytes,
        "restarts": state.restarts,
        "lost_students": {str(student): how for student, how in state.lost_students.items()},
        "exchange": _exchange(run.step_figures()),
        "replay": _replay(run, len(stages)),
    }


def _final(matrix: ScoreMatrix, experiment: ExperimentConfig) -> list[float | None]:
    """The score of every task in the end; of models that each learned one task alone, that of the task's own model."""
    if get_method(experiment.method).stages == "separate":
        return [row[task] for task, row in enumerate(matrix)]
    return list(matrix[-1])


def _over_epochs(
    run: RunDirectory, experiment: ExperimentConfig, matrices: Mapping[str, ScoreMatrix]
) -> dict[str, dict[str, float | None]]:
    """Forgetting from the best score of any epoch, as in Table 3 of the L4 paper; only where every epoch was scored."""
    if experiment.evaluation.when != "epoch" or get_method(experiment.method).stages != "stream":
        return {}
    tasks = [task.name for task in experiment.stream]
    found = {}
    for student, matrix in matrices.items():
        epochs = range(1, experiment.training.epochs + 1)
        trajectory = [row for epoch in epochs for row in score_matrix(run, int(student), tasks, epoch, len(tasks))]
        found[student] = forgetting(matrix, trajectory)
    return {"forgetting_over_epochs": found}


def score_matrix(
    run: RunDirectory, student: int, tasks: Sequence[str], epoch: int, num_stages: int
) -> list[list[float | None]]:
    """R[i][j]: the headline score of task j after that epoch of stage i; None where it was not scored."""
    found = {
        (cell.stage, cell.task): float(record["values"][record["headline"]])
        for cell, record in run.scores().items()
        if cell.student == student and cell.epoch == epoch
    }
    return [[found.get((stage, task)) for task in tasks] for stage in range(num_stages)]


def _exchange(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not rows:
        return {"bytes_per_step": 0.0, "bytes_received_per_step": 0.0, "wait_fraction": 0.0}
    total = sum(row[name] for row in rows for name in _SECONDS)
    return {
        "bytes_per_step": sum(row["bytes_sent"] for row in rows) / len(rows),
        "bytes_received_per_step": sum(row.get("bytes_received") or 0.0 for row in rows) / len(rows),
        "wait_fraction": sum(row["wait_seconds"] for row in rows) / total if total else 0.0,
    }


def _replay(run: RunDirectory, stages: int) -> dict[str, dict[str, int]]:
    counts = {}
    for stage in range(1, stages):
        path = run.path / "replay" / f"stage-{stage}.parquet"
        if path.is_file():
            valid = pq.read_table(path, columns=["valid"]).column("valid").to_pylist()
            counts[str(stage)] = {"requested": len(valid), "valid": sum(valid), "dropped": len(valid) - sum(valid)}
    return counts
