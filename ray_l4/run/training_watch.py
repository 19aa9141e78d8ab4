"""Warns of training that goes wrong while it goes on: in the log, in the live view, and for the report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby, product
from typing import Any

from ray_l4.errors import DamagedError
from ray_l4.methods import Topology
from ray_l4.metrics.troubled_training import Trouble, TroubledTraining
from ray_l4.run.context import RunContext
from ray_l4.store.states import State
from ray_l4.store.warnings import TrainingWarning, read_warnings, write_warnings


class TrainingWatch:
    """Watches the steps of stages that are learned at the same time."""

    def __init__(self, context: RunContext, stages: Sequence[int], topology: Topology, state: State | None) -> None:
        """``topology``: who learns from whom. ``state``: the one from which the stages go on, if any."""
        self._context = context
        experiment = context.setup.experiment
        taught = taught_by_peers(topology) if experiment.at_stage(stages[0]).distillation.weight else ()
        self._watched = {stage: TroubledTraining(experiment.training.lm_weight, taught) for stage in stages}
        if state is not None:
            for stage, step, figures in _steps(self._earlier(state)):
                self._watched[stage].add(step, figures)

    def see(self, stage: int, step: int, figures: Mapping[int, Mapping[str, float]]) -> None:
        """Add the figures of a step by student, and warn of what has newly gone wrong, unless the run has before."""
        for trouble in self._watched[stage].add(step, figures):
            known = self._known()
            place = (trouble.kind, stage, trouble.student)
            if place not in [(own.kind, own.stage, own.student) for own in known]:
                message = self._message(stage, trouble)
                write_warnings(self._context.directory, [*known, TrainingWarning(*place, trouble.step, message)])
                self._context.progress.add_event(f"warning: {message}")

    def _known(self) -> list[TrainingWarning]:
        try:
            return read_warnings(self._context.directory)
        except DamagedError as error:
            self._context.progress.warn(f"{error} Starting a new list.")
            return []

    def _message(self, stage: int, trouble: Trouble) -> str:
        name = self._context.setup.stages[stage].name
        return f"student {trouble.student} (stage {stage}, {name}, step {trouble.step}) {trouble.text}"

    def _earlier(self, state: State) -> list[Mapping[str, Any]]:
        """Return the figures of the steps before ``state``, of all epochs."""
        found: list[Mapping[str, Any]] = [row for row in state.figures if row["stage"] in self._watched]
        for stage, epoch in product(self._watched, range(1, state.position.epoch)):
            try:
                found += self._context.directory.epoch_figures(stage, epoch)
            except DamagedError as error:
                self._context.progress.warn(f"{error} Training is watched without these steps.")
        return found


def taught_by_peers(topology: Topology) -> Collection[int]:
    """Return the students that learn from other students only, and from at least one."""
    students = set(topology.students)
    return [
        own for own in topology.students if topology.teachers_of(own) and students >= set(topology.teachers_of(own))
    ]


def _steps(rows: list[Mapping[str, Any]]) -> Iterable[tuple[int, int, Mapping[int, Mapping[str, float]]]]:
    """Yield stage, step, and the figures of its students."""
    ordered = sorted(rows, key=lambda row: (row["stage"], row["epoch"], row["step"], row["student"]))
    for (stage, step), together in groupby(ordered, key=lambda row: (row["stage"], row["step"])):
        yield stage, step, {row["student"]: row for row in together}
