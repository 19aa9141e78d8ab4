"""A student that was distilled from the peers of another run, beside these peers."""

from __future__ import annotations

from ray_l4.errors import RayL4Error
from ray_l4.methods import get_method
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import number, table
from ray_l4.store.run_directory import RunDirectory


def fusion_table(run: FinishedRun) -> str:
    """Return a table with the scores of every peer that taught, in percent, of the student of all, and their average.

    Without the peers' rows if their run is not there any more; empty for a run that was not fused of others.
    """
    if not get_method(run.method).has_peer_teachers:
        return ""
    fused = [run.final(0)[task] for task in run.tasks]
    rows = [*_peers(run), ["fused", *_cells(fused)]]
    return table(["model", *run.tasks, "average"], rows)


def _peers(run: FinishedRun) -> list[list[str]]:
    named, stage = run.experiment.teachers.run, len(run.experiment.stream) - 1
    try:
        summary = RunDirectory.open(named).summary() if named else {}
        columns = [summary["stream"].index(task) for task in run.tasks]
        scores = {student: summary["score_matrix"][str(student)][stage] for student in run.experiment.teachers.students}
    except (RayL4Error, KeyError, IndexError, ValueError):  # extended, and not learned to its end; or gone
        return []
    return [[f"peer {student}", *_cells([row[column] for column in columns])] for student, row in scores.items()]


def _cells(scores: list[float | None]) -> list[str]:
    known = [score for score in scores if score is not None]
    average = sum(known) / len(known) if len(known) == len(scores) else None
    return [number(score) for score in [*scores, average]]
