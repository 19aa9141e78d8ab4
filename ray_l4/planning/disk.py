"""The disk space that a run directory takes: checkpoints, states of the stage under way, what guards keep."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import get_method, num_students, stages_of, teacher_experiment
from ray_l4.planning.units import size_text

_GUARD_COPIES = 2
"""What EWC and MAS keep of a stage: the importance of every weight, and its value."""

_STATE_COPIES = 3
"""What a state has of a student: every trainable weight, and its two moments."""


@dataclass(frozen=True)
class DiskNeed:
    """Disk space of a run directory, at its fullest. Left out are replay, answers and figures, a few bytes a
    token, and the logits that ``derpp`` keeps, 8 bytes for each of ``regulariser.stored_logits`` a token."""

    checkpoint: int
    """Bytes of one student's checkpoint."""
    checkpoints: int
    """Checkpoints of each student."""
    students: int
    teachers: int
    """Checkpoints of task teachers, trained within the run."""
    guards: int
    """Bytes that guards keep."""
    state: int
    """Bytes of one state, of all students that learn at the same time."""
    states: int
    """States of the stage under way, with the one that is being written."""

    @property
    def needed(self) -> int:
        """All bytes."""
        checkpoints = self.checkpoint * (self.checkpoints * self.students + self.teachers)
        return checkpoints + self.guards + self.state * self.states


def disk_need(experiment: ExperimentConfig, checkpoint: int, ranks_with_all: int = 1) -> DiskNeed:
    """Return the disk space of a run of ``experiment`` (with ``methods.resolved``).

    ``checkpoint``: bytes of one student's checkpoint. ``ranks_with_all``: ranks of a student that each write the whole
    model in a state. With ``checkpoint.keep`` there may be more checkpoints while some wait to be scored.
    """
    method, students = get_method(experiment.method), num_students(experiment)
    stages = len(stages_of(experiment))
    trained_here = method.has_task_teachers and experiment.teachers.run is None
    alone = method.kind.independent  # at most as many models at a time as there are stages
    guarded = method.guard in ("fisher", "sensitivity")
    return DiskNeed(
        checkpoint=checkpoint,
        checkpoints=_most_checkpoints(experiment),
        students=students,
        teachers=_most_checkpoints(teacher_experiment(experiment)) if trained_here else 0,
        guards=_GUARD_COPIES * checkpoint * students * stages if guarded else 0,
        state=_STATE_COPIES
        * checkpoint
        * ranks_with_all
        * max(stages if alone else students, len(experiment.stream) * trained_here),
        states=_most_states(experiment),
    )


def _most_checkpoints(experiment: ExperimentConfig) -> int:
    """Return how many checkpoints of one student lie on disk at a time."""
    kind, evaluation = get_method(experiment.method).kind, experiment.evaluation
    stages = len(stages_of(experiment))
    every = evaluation.when == "epoch"
    written = sum(map(experiment.epochs_of, range(stages))) if every else stages
    newest = experiment.checkpoint.newest
    # A new one is written before an older one is removed; so is the best epoch so far, where only that one stays.
    overlap = 0 if newest is None and (every or evaluation.validation is None) else 1
    if newest is None:
        return written + overlap
    results = stages if kind.independent else 1
    return min(written, max(newest, results)) + overlap


def _most_states(experiment: ExperimentConfig) -> int:
    """Return how many states lie on disk at a time: without any by steps or minutes, that of a run that was stopped.

    Without training steps there are none.
    """
    if not get_method(experiment.method).learns:
        return 0
    checkpoint = experiment.checkpoint
    regular = checkpoint.every_steps is not None or checkpoint.every_minutes is not None
    return checkpoint.states + 1 if regular else 1


def free_space(folder: Path) -> int:
    """Return the bytes that are free where ``folder`` is, or will be."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(there).free


def disk_problem(need: DiskNeed, free: int | None, keep: object) -> str:
    """Return why a run directory does not fit; empty if it does, or if the free space is unknown."""
    if free is None or need.needed <= free:
        return ""
    remedy = "" if keep == "last" else " checkpoint.keep: last keeps the newest checkpoint only;"
    remedy += " checkpoint.states: 1 keeps one state less;" if need.states > 2 else ""
    return (
        f"disk: needs {size_text(need.needed)} for checkpoints and states, {size_text(free)} are free where the run "
        f"directory will be;{remedy} --run-dir names another place"
    )
