"""The summary of a run, computed from its run directory alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import get_method, graph_name, num_students, scores_together, stages_of
from ray_l4.metrics.continual import (
    ScoreMatrix,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
)
from ray_l4.report.general import general_part
from ray_l4.report.run_files import Headline, count_parameters, read_headlines, read_replay
from ray_l4.store.record_types import Validation
from ray_l4.store.run_directory import SECONDS, TOGETHER, Cell, RunDirectory, read_record

_FIGURES: Mapping[str, Callable[[ScoreMatrix, Sequence[int] | None], float | None]] = {
    "average_incremental_accuracy": average_incremental_accuracy,
    "forgetting": lambda matrix, learned: forgetting(matrix, (), learned),
    "backward_transfer": backward_transfer,
}


def summarise(run: RunDirectory) -> dict[str, Any]:
    """Return the contents of ``summary.json``. Scores are percentages; None stands for an undefined figure.

    ``stream``: the tasks, each once. ``learned``: the tasks that each of the ``stages`` learned.
    ``topology``: who learns from whom, by name or as [teacher, student] pairs.
    ``score_matrix``: student -> a row for each stage, a column for each task of ``stream``.
    ``together``: ``score_matrix``, ``final`` and figures of all students together, if they were scored so.
    ``parameters``: student -> number of parameters in its last checkpoint (``count``), and whether these are only those
    of its ``adapters``.
    ``validation``: stage -> its validation losses, and the epoch that they chose; empty if nothing was validated.
    ``general``: the general text, and student -> its perplexity before the first stage and after every stage;
    ``general_perplexity``: student -> the last of them. Both are missing if there is no general text.
    ``restarts``: number of times that a stage was learned again because a student was lost.
    ``lost_students``: student -> how it was lost. The others went on, learning from the mean of their present teachers.
    ``exchange.bytes_per_step``: bytes that one student publishes in one step, on average.
    ``exchange.bytes_received_per_step``: bytes that it receives from its teachers; 0 if the run did not count them.
    ``exchange.wait_fraction``: share of the students' time that they spend waiting for their teachers' predictions.
    """
    experiment, state, headlines = run.experiment(), run.state(), read_headlines(run)
    stages, kind = stages_of(experiment), get_method(experiment.method).kind
    tasks, peers = list(experiment.tasks), num_students(experiment)
    columns = [tasks.index(task) for stage in stages for task in stage.tasks] if kind.ordered else None
    epochs = [run.result_epoch(stage, experiment.epochs_of(stage)) for stage in range(len(stages))]
    rows = [*range(peers), *([TOGETHER] if scores_together(experiment) else [])]
    matrices = {str(row): score_matrix(headlines, row, tasks, epochs) for row in rows}
    final_stages = [kind.final_stage(task, [stage.tasks for stage in stages]) for task in tasks]
    finals = {
        student: [matrix[stage][column] for column, stage in enumerate(final_stages)]
        for student, matrix in matrices.items()
    }
    scores: dict[str, dict[str, Any]] = {
        "score_matrix": matrices,
        "final": {student: dict(zip(tasks, final, strict=True)) for student, final in finals.items()},
        "average_accuracy": {student: average_accuracy([final]) for student, final in finals.items()},
        **{name: {s: figure(matrix, columns) for s, matrix in matrices.items()} for name, figure in _FIGURES.items()},
        **_over_epochs(headlines, experiment, matrices, columns),
    }
    together = {key: of_rows.pop(str(TOGETHER)) for key, of_rows in scores.items() if str(TOGETHER) in of_rows}
    return {
        "name": experiment.name,
        "method": experiment.method,
        "variant": experiment.variant or experiment.method,
        "stream": tasks,
        "stages": [stage.name for stage in stages],
        "learned": [list(stage.tasks) for stage in stages],
        "peers": peers,
        "topology": graph_name(experiment),
        "seed": experiment.seed,
        **scores,
        **({"together": together} if together else {}),
        "parameters": {
            str(student): found for student in range(peers) if (found := count_parameters(run, student)) is not None
        },
        "validation": _validation(run, len(stages)),
        **general_part(run, epochs, peers, independent=kind.independent),
        "wall_seconds": state.wall_seconds,
        "peak_memory_bytes": state.peak_memory_bytes,
        "restarts": state.restarts,
        "lost_students": {str(student): how for student, how in state.lost_students.items()},
        "exchange": _exchange(run.step_figures()),
        "replay": _replay(run, len(stages)),
    }


def _over_epochs(
    headlines: Mapping[Cell, Headline],
    experiment: ExperimentConfig,
    matrices: Mapping[str, ScoreMatrix],
    learned: Sequence[int] | None,
) -> dict[str, dict[str, float | None]]:
    """Compute forgetting from the best score of any epoch, as L4's Table 3 does, if every epoch was scored."""
    if experiment.evaluation.when != "epoch" or learned is None:
        return {}
    epochs = range(1, max(experiment.epochs_of(stage) for stage in range(len(learned))) + 1)
    found = {}
    for student, matrix in matrices.items():
        of_epochs = (
            score_matrix(headlines, int(student), experiment.tasks, [epoch] * len(learned)) for epoch in epochs
        )
        found[student] = forgetting(matrix, [row for rows in of_epochs for row in rows], learned)
    return {"forgetting_over_epochs": found}


def score_matrix(
    headlines: Mapping[Cell, Headline], student: int, tasks: Sequence[str], epochs: Sequence[int]
) -> list[list[float | None]]:
    """Return R[i][j]: the headline score of task j after epoch ``epochs[i]`` of stage i; None where not scored."""
    values = {cell: headline.value for cell, headline in headlines.items()}
    return [[values.get(Cell(stage, epoch, student, task)) for task in tasks] for stage, epoch in enumerate(epochs)]


def _exchange(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not rows:
        return {"bytes_per_step": 0.0, "bytes_received_per_step": 0.0, "wait_fraction": 0.0}
    total = sum(row.get(name) or 0.0 for row in rows for name in SECONDS)
    return {
        "bytes_per_step": sum(row.get("bytes_sent") or 0.0 for row in rows) / len(rows),
        "bytes_received_per_step": sum(row.get("bytes_received") or 0.0 for row in rows) / len(rows),
        "wait_fraction": sum(row.get("wait_seconds") or 0.0 for row in rows) / total if total else 0.0,
    }


def _validation(run: RunDirectory, num_stages: int) -> dict[str, dict[str, Any]]:
    records = {stage: run.validation(stage) for stage in range(num_stages)}
    return {str(stage): read_record(path, Validation) for stage, path in records.items() if path.is_file()}


def _replay(run: RunDirectory, num_stages: int) -> dict[str, dict[str, int]]:
    counts = {}
    for stage in range(num_stages):
        table = read_replay(run, stage, ["valid"])
        if table is not None:
            valid = table.column("valid").to_pylist()
            counts[str(stage)] = {"requested": len(valid), "valid": sum(valid), "dropped": len(valid) - sum(valid)}
    return counts
