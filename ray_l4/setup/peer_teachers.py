"""The finished run whose students teach a student of all of them: what it needs to have, and where that is."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.text import counted
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.methods import get_method, num_students
from ray_l4.store.checkpoints import is_model
from ray_l4.store.run_directory import RunDirectory


@dataclass(frozen=True)
class Fusable:
    """The students of a finished run that can teach."""

    students: list[int]
    notes: list[str]
    """What the user should know about those that cannot."""


def fusable(run: RunDirectory) -> Fusable:
    """Return the students of a run that can be distilled into one.

    One that was lost, or has no checkpoint any more, is left out. Raises RunDirectoryError if the run has not finished,
    or has not two students with checkpoints, and ConfigError if its stages are not learned one after another, or each
    in adapters of its own.
    """
    run.summary()  # raises if the run has not finished
    experiment, lost = run.experiment(), run.state().lost_students
    count = num_students(experiment)
    if not get_method(experiment.method).kind.ordered:
        raise ConfigError(
            f"{run.path}: a run of {experiment.method} does not learn one task after another, so it has no last stage "
            "whose examples its peers could be compared on. Give a run of a method that does, such as l4."
        )
    if get_method(experiment.method).needs_adapters:
        raise ConfigError(
            f"{run.path}: each task of {experiment.method} has adapters of its own, which no other "
            "student can take over. Give a run of another method, such as l4."
        )
    if count == 1:
        raise RunDirectoryError(
            f"{run.path}: this run of {experiment.method} has one student, which is already one model. Serve it: "
            f"ray-l4 serve {shlex.quote(str(run.path))}. To fuse peers, give a run with several (peers.count)."
        )
    stage = len(experiment.stream) - 1
    folders = {student: _result(run, stage, student) for student in range(count) if student not in lost}
    gone = {student: f"{folder} is missing" for student, folder in folders.items() if not is_model(folder)}
    notes = [f"student {student} was lost, and is left out: {how}" for student, how in sorted(lost.items())]
    notes += [f"student {student} is left out: {how}" for student, how in gone.items()]
    present = [student for student in folders if student not in gone]
    if len(present) < 2:
        raise RunDirectoryError(
            f"{run.path}: {counted(len(present), 'student')} of {count} left, so there are no two peers to fuse: "
            f"{'; '.join(notes)}. Bring checkpoints back from a copy of the run, or serve what is left: "
            f"ray-l4 serve {shlex.quote(str(run.path))}"
        )
    if not run.replay(stage).is_file() and stage:
        notes.append(
            f"{run.replay(stage)}: is not there, so nothing was replayed in the last stage, or the file was removed; "
            "the peers are compared on the examples of the last stage's task alone"
        )
    return Fusable(present, notes)


def peer_checkpoint(run: RunDirectory, stage: int, student: int) -> Path:
    """Return the folder of a student's result of ``stage``. Raises RunDirectoryError if there is none."""
    folder = _result(run, stage, student)
    if not is_model(folder):
        raise RunDirectoryError(
            f"{folder}: is missing, so student {student} of {run.path} cannot teach. Bring it back from a copy of the "
            "run, or fuse the other students in a new run (ray-l4 fuse leaves out those without a checkpoint)."
        )
    return folder


def _result(run: RunDirectory, stage: int, student: int) -> Path:
    return run.checkpoint(stage, run.result_epoch(stage, run.experiment().epochs_of(stage)), student)


def finished_peers(experiment: ExperimentConfig) -> RunDirectory | None:
    """Return the run whose students teach; None if the method has no such teachers.

    Raises RunDirectoryError if that run, or a checkpoint of one of its students that teach, is not there.
    """
    named = experiment.teachers.run
    if named is None or not get_method(experiment.method).has_peer_teachers:
        return None
    run = RunDirectory.open(named)
    count = num_students(run.experiment())
    unknown = next((student for student in experiment.teachers.students if student >= count), None)
    if unknown is not None:
        raise ConfigError(
            f"teachers.students: {run.path} has no student {unknown}; expected numbers from 0 to {count - 1}"
        )
    for student in experiment.teachers.students:
        peer_checkpoint(run, taught_stage(experiment), student)
    return run


def taught_stage(experiment: ExperimentConfig) -> int:
    """Return the stage of the run whose students teach ``experiment``: its last one when they were to be fused."""
    return len(experiment.stream) - 1
