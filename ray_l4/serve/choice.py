"""Which checkpoint of a run is served: of the promoted stage, the best student's."""

from __future__ import annotations

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.methods import get_method, stages_of
from ray_l4.store.checkpoints import Checkpoint, Wanted, last_checkpoints
from ray_l4.store.promotion import served_stage
from ray_l4.store.run_directory import RunDirectory


def served_checkpoint(run: RunDirectory) -> Checkpoint:
    """Return the checkpoint that is served now. Raises RunDirectoryError if no stage has finished."""
    stage = served_stage(run)
    if stage is None:
        raise RunDirectoryError(
            f"{run.path}: no stage of this run has finished, so there is no model to serve yet. Wait for one, or go on "
            f"with the run: ray-l4 resume {run.path}"
        )
    return best_checkpoint(run, stage)


def best_checkpoint(run: RunDirectory, stage: int) -> Checkpoint:
    """Return the checkpoint of the best student after a stage. Raises RunDirectoryError if there is none.

    Of the present students it is the one with the highest mean of its scores after the stage, over the tasks learned
    by then; the first of them if several have it, or as long as not all have been scored.
    """
    present = present_checkpoints(run, stage)
    means = [_mean_score(checkpoint) for checkpoint in present]
    known = [mean for mean in means if mean is not None]
    return present[known.index(max(known)) if len(known) == len(present) else 0]


def present_checkpoints(run: RunDirectory, stage: int) -> list[Checkpoint]:
    """Return the checkpoints after a stage of the students that are not lost. Raises as ``best_checkpoint``."""
    found = last_checkpoints(run, Wanted(stage=stage), every_stage=False)
    lost = run.state().lost_students
    return [checkpoint for checkpoint in found if checkpoint.student not in lost] or list(found)


def learned_tasks(experiment: ExperimentConfig, stage: int) -> tuple[str, ...]:
    """Return the tasks that a checkpoint of ``stage`` has learned, in the order in which it learned them."""
    stages = stages_of(experiment)
    independent = get_method(experiment.method).kind.independent
    own = stages[stage : stage + 1] if independent else stages[: stage + 1]
    return tuple(dict.fromkeys(task for each in own for task in each.tasks))


def _mean_score(checkpoint: Checkpoint) -> float | None:
    """Return the mean of a checkpoint's headline scores; None if a score is missing."""
    run = checkpoint.run
    records = [run.score(checkpoint.cell(task)) for task in learned_tasks(run.experiment(), checkpoint.stage)]
    if not all(records):
        return None
    return sum(float(record["values"][record["headline"]]) for record in records) / len(records)
