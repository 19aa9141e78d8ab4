"""Writes students' checkpoints to the run directory, and restores students from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.membership import Membership
from ray_l4.cluster.rpc import PerRank
from ray_l4.run.context import RunContext
from ray_l4.run.retention import checkpoints_in
from ray_l4.run.scoring import Scoring
from ray_l4.setup.stage_plan import Assignment
from ray_l4.store.atomic import remove_if_there
from ray_l4.store.records import read_guard, read_weights, write_checkpoint, write_guard


class Checkpoints:
    """Writes the weights of students and the state of their guards to the run directory, and restores them."""

    def __init__(self, context: RunContext, membership: Membership, disk: ThreadPoolExecutor) -> None:
        self._context = context
        self._limits = context.cluster.timeouts
        self._membership = membership
        self._disk = disk
        """``disk``: the thread that writes checkpoints."""
        self._descriptions: dict[int, Mapping[str, Any]] = {}

    @property
    def descriptions(self) -> Mapping[int, Mapping[str, Any]]:
        """Student -> its model's configuration. Each student is asked once."""
        students = self._membership.students
        missing = [student for student in self._membership.topology.students if student not in self._descriptions]
        asked = {student: students[student].describe() for student in missing}
        for student, references in asked.items():
            self._descriptions[student] = students[student].wait(references, self._limits.start, "describe")
        return self._descriptions

    def keep(self, assignment: Assignment, epoch: int, scoring: Scoring | None) -> Future[None]:
        """Write a student's current weights in the background, and request their scores from ``scoring``, if any."""
        weights = self._membership.students[assignment.slot].weights()
        folder = self._context.directory.checkpoint(assignment.stage, epoch, assignment.student)
        description = self.descriptions[assignment.student]
        if scoring is not None:
            scoring.request(assignment.stage, epoch, assignment.student, weights[0], description)
        return self._disk.submit(self._write, folder, assignment, weights)

    def return_to(self, assignment: Assignment, epoch: int) -> None:
        """Load the weights that a student had after ``epoch`` of a stage, from its checkpoint."""
        student = self._membership.students[assignment.slot]
        weights = read_weights(self._context.directory.checkpoint(assignment.stage, epoch, assignment.student))
        student.wait(student.load(weights), self._limits.start, "load")

    def discard(self, stage: int, kept: Collection[int]) -> None:
        """Remove the checkpoints of all epochs of a stage but those in ``kept``, once those queued are written."""
        folder = self._context.directory.path
        places = [place for place in checkpoints_in(folder) if place[0] == stage and place[1] not in kept]
        for place in places:
            self._disk.submit(remove_if_there, self._context.directory.checkpoint(*place)).result()

    def _write(self, folder: Path, assignment: Assignment, weights: PerRank[Any]) -> None:
        student = self._membership.students[assignment.slot]
        array = student.wait(weights, self._limits.step, "checkpoint")
        write_checkpoint(
            folder, array, self.descriptions[assignment.student], self._context.directory.path / "tokenizer"
        )

    def consolidate(self, assignments: Sequence[Assignment]) -> None:
        """Update the students' guards with the stage, and write the guards' states for a resume."""
        students = self._membership.students
        asked = [(own, students[own.slot].consolidate()) for own in assignments]
        for own, references in asked:
            state = students[own.slot].wait(references, self._limits.work, "importance of weights")
            if state is not None:
                write_guard(self._context.directory, own.stage, own.student, state)

    def restore(self, stages_done: int) -> None:
        """Restore the present students to the end of the first ``stages_done`` stages, or to their initial weights."""
        directory = self._context.directory
        asked: list[tuple[StudentHandle, PerRank[None]]] = []
        for peer in self._membership.topology.students:
            student = self._membership.students[peer]
            if not stages_done:
                asked.append((student, student.reset()))
                continue
            epoch = directory.result_epoch(stages_done - 1, self._context.setup.experiment.epochs_of(stages_done - 1))
            asked.append((student, student.load(read_weights(directory.checkpoint(stages_done - 1, epoch, peer)))))
            if self._context.setup.method.guard_learns:
                asked.append((student, student.restore_guard(read_guard(directory, stages_done - 1, peer))))
        for student, references in asked:
            student.wait(references, self._limits.start, "return to the end of a stage")
