"""Assigns stages to student workers, and decides which workers learn at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from ray_l4.methods import Topology, isolated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray_l4.setup.setup import Setup


@dataclass(frozen=True)
class Assignment:
    """One stage, to be learned by one worker."""

    slot: int
    """Index of the worker among the student workers of the run."""
    student: int
    """The student that the worker is in this stage."""
    stage: int


@dataclass(frozen=True)
class StagePlan:
    """The workers and passes that follow from the kind of stages of a run's method."""

    setup: Setup
    num_slots: int
    """Number of student workers of the run."""

    @classmethod
    def of(cls, setup: Setup, most_slots: int) -> StagePlan:
        """Return the plan for a cluster with room for up to ``most_slots`` student workers."""
        independent = setup.method.kind.independent
        return cls(setup, min(most_slots, len(setup.stages)) if independent else setup.topology.size)

    @property
    def peers(self) -> list[int]:
        """The peer of each slot: a peer of the topology, or peer 0 for models that are trained independently."""
        return [0] * self.num_slots if self.begins_anew else list(range(self.num_slots))

    @property
    def begins_anew(self) -> bool:
        """Whether every stage begins with a new model, rather than with the weights from the previous stage."""
        return self.setup.method.kind.independent

    def assignments(self, done: int, students: Sequence[int]) -> list[Assignment]:
        """Return the next assignments after ``done`` stages: one for each student, or one for each of the next models
        that have the same number of epochs.

        ``students``: the students that are present.
        """
        if self.begins_anew:
            stages = range(done, min(done + self.num_slots, len(self.setup.stages)))
            epochs = self.setup.experiment.epochs_of
            alike = takewhile(lambda stage: epochs(stage) == epochs(done), stages)
            return [Assignment(slot, 0, stage) for slot, stage in enumerate(alike)]
        return [Assignment(student, student, done) for student in students]

    def topology_of(self, stage: int, present: Topology) -> Topology:
        """Return the topology of a stage. ``present``: the topology of the peers that are present.

        A student that learns from its own earlier model has no teacher in the first stage, unless what it began with
        teaches by demonstrations.
        """
        method = self.setup.method
        no_teacher_yet = method.taught_by_itself and not method.demonstrates and stage == 0
        return isolated(present.size) if no_teacher_yet else present

    def curve_name(self, assignment: Assignment) -> str:
        """Return the name of a student's curves: its stage, if models are trained independently side by side."""
        if self.begins_anew:
            return self.setup.stages[assignment.stage].name
        return f"student-{assignment.student}"

    def passes(self, steps: Mapping[int, range]) -> Iterator[dict[int, range]]:
        """Split an epoch into passes: one of all workers side by side, or one for each worker (Algorithm 1 of L4).

        ``steps``: slot -> its steps of the epoch.
        """
        if self.setup.experiment.distillation.schedule == "simultaneous":
            yield dict(steps)
        else:
            yield from ({slot: own} for slot, own in steps.items())


def most_slots(setup: Setup, students: int) -> int:
    """Return how many student workers can be busy at the same time: ``students``, or more if models are independent."""
    method = setup.method
    independent = method.kind.independent or method.has_task_teachers
    return max(students, len(setup.items)) if independent else students
