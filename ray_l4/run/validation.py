"""Validation of a stage: the loss after every epoch, the best epoch, and when to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray_l4.cluster.membership import Membership
from ray_l4.errors import PeerError
from ray_l4.run.context import RunContext
from ray_l4.setup.stage_plan import Assignment, StagePlan
from ray_l4.store.sealed import write_record

log = logging.getLogger("ray_l4.coordinator")


@dataclass
class ValidationCurve:
    """The validation losses of one stage."""

    epochs: list[dict[int, float]] = field(default_factory=list)
    """Student -> its loss, for every epoch."""
    best: int = 0
    """The best epoch so far, from 1. A student that is lost later does not change it: only its checkpoint is kept."""

    def add(self, losses: dict[int, float]) -> None:
        """Add the losses of the next epoch: it is the best one if their mean is lower than that of the best so far.

        Both means are over the students of the new epoch.
        """
        self.epochs.append(losses)
        means = self.means
        if not self.best or means[-1] < means[self.best - 1]:
            self.best = len(means)

    @property
    def means(self) -> list[float]:
        """The mean loss of every epoch, over the students that are left."""
        students = sorted(self.epochs[-1])
        return [sum(losses[student] for student in students) / len(students) for losses in self.epochs]

    def exhausted(self, patience: int | None) -> bool:
        """Return whether ``patience`` epochs have passed since the best one."""
        return patience is not None and len(self.epochs) - self.best >= patience


class Validation:
    """Measures the validation losses of a stage, or of several side by side, and chooses the best epoch of each."""

    def __init__(self, context: RunContext, plan: StagePlan, membership: Membership) -> None:
        self._context = context
        self._plan = plan
        self._membership = membership
        self._curves: dict[int, ValidationCurve] = {}

    @property
    def asked(self) -> bool:
        """Whether the experiment asks for validation; if not, the last epoch of a stage is its result."""
        return self._context.setup.experiment.evaluation.validation is not None

    def restore(self, losses: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Take over the losses of finished epochs, as ``losses`` returned them."""
        for stage, epochs in losses.items():
            curve = self._curves.setdefault(int(stage), ValidationCurve())
            for epoch in epochs:
                curve.add({int(student): loss for student, loss in epoch.items()})

    @property
    def losses(self) -> dict[str, list[dict[str, float]]]:
        """Stage -> student -> its loss, for every epoch so far; with keys that JSON has."""
        return {
            str(stage): [{str(student): loss for student, loss in epoch.items()} for epoch in curve.epochs]
            for stage, curve in self._curves.items()
        }

    @property
    def stages(self) -> list[int]:
        """The stages that have been measured."""
        return list(self._curves)

    def measure(self, epoch: int, assignments: Sequence[Assignment]) -> None:
        """Measure the losses of all students after ``epoch``. Raises PeerError if one is not finite."""
        if not self.asked:
            return
        context, students = self._context, self._membership.students
        context.progress.update(phase="validation")
        found: dict[int, dict[int, float]] = {}
        with context.timeline.span("coordinator", "validation", f"validation after epoch {epoch}"):
            asked = {
                own: students[own.slot].validate(self._membership.fence, context.setup.stages[own.stage].items)
                for own in assignments
            }
            for own, references in asked.items():
                loss = students[own.slot].wait(references, context.cluster.timeouts.work, "validation")
                if not math.isfinite(loss):
                    where = f"student {own.student}, {context.setup.stages[own.stage].name}, epoch {epoch}"
                    raise PeerError(f"{where}: the validation loss is not finite; try a lower optim.lr")
                found.setdefault(own.stage, {})[own.student] = loss
        context.curves.log_validation({self._plan.curve_name(own): found[own.stage][own.student] for own in asked})
        context.progress.update(phase="training")
        for stage, losses in found.items():
            self._curves.setdefault(stage, ValidationCurve()).add(losses)
            name = context.setup.stages[stage].name
            context.progress.add_event(f"{name}, epoch {epoch}: validation loss {self._curves[stage].means[-1]:.4f}")

    def best(self, stage: int) -> int:
        """Return the best epoch of a stage so far."""
        return self._curves[stage].best

    def exhausted(self) -> list[int]:
        """Return the stages that are to stop, since their loss has not fallen for ``evaluation.patience`` epochs."""
        patience = self._context.setup.experiment.evaluation.patience
        return [stage for stage, curve in self._curves.items() if curve.exhausted(patience)]

    def num_epochs(self, stage: int) -> int:
        """Return how many epochs of a stage were trained."""
        return len(self._curves[stage].epochs)

    def record(self, stage: int) -> None:
        """Write the losses of a stage, and the epoch that is its result, to the run directory."""
        curve, setup = self._curves[stage], self._context.setup
        losses: Mapping[str, list[float | None]] = {
            str(student): [epoch.get(student) for epoch in curve.epochs] for student in sorted(curve.epochs[0])
        }
        write_record(
            self._context.directory.validation(stage),
            {
                "stage": stage,
                "name": setup.stages[stage].name,
                "examples": sum(setup.validation[item].num_rows for item in setup.stages[stage].items),
                "epoch": curve.best,
                "means": curve.means,
                "losses": losses,
            },
        )
        log.info("%s: epoch %d of %d is its result", setup.stages[stage].name, curve.best, len(curve.epochs))
