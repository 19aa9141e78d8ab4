"""Keeps the batch and the state of a step whose loss or gradient is not finite, and warns of those that are skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from ray_l4.cluster.membership import Membership
from ray_l4.errors import NonFiniteError, RayL4Error
from ray_l4.run.context import RunContext
from ray_l4.setup.stage_plan import Assignment
from ray_l4.store.atomic import remove_if_there
from ray_l4.store.failed_steps import BATCH, GUARD, MEMORY, TARGETS, StepPlace, add_failed_step, as_json
from ray_l4.store.records import write_checkpoint

_ADVICE = "Lower optim.lr, or leave such steps out with training.non_finite: skip."


def kept_failed_step(
    context: RunContext, membership: Membership, assignments: Sequence[Assignment], error: NonFiniteError
) -> NonFiniteError:
    """Write what it takes to repeat the step; returns the error that says where it is, or why it could not be kept."""
    place = StepPlace(error.stage, error.step, error.student)
    slots = [own.slot for own in assignments if (own.student, own.stage) == (error.student, error.stage)]
    try:
        for slot in slots:
            _keep(context, membership, slot, place)
        run, folder = context.directory.path, place.folder(context.directory)
        kept = f"ray-l4 debug-batch {run} repeats the step, whose batch and weights are in {folder}"
    except (RayL4Error, OSError) as failure:
        kept = f"its batch could not be kept: {failure}"
    message = f"{error}. The weights were not updated; {kept}. {_ADVICE}"
    return NonFiniteError(message, place.student, place.stage, place.step)


def _keep(context: RunContext, membership: Membership, slot: int, place: StepPlace) -> None:
    student, limit = membership.students[slot], context.cluster.timeouts.start
    failed = student.wait(student.failed_step(), limit, "failed step")
    if failed is None:
        return
    weights = student.wait(student.weights(), limit, "weights")
    description = student.wait(student.describe(), limit, "describe")
    folder = place.folder(context.directory)
    ready = folder.with_name(f".{folder.name}.ready")
    write_checkpoint(ready, weights, description, context.directory.path / "tokenizer")
    why = {**place._asdict(), "lr": failed.rate, "ranks": len(student.ranks), "figures": as_json(failed.figures)}
    add_failed_step(
        ready, why, {BATCH: failed.batch, MEMORY: failed.memory}, {GUARD: failed.guard, TARGETS: failed.targets}
    )
    remove_if_there(folder)  # of an earlier attempt
    ready.replace(folder)


def skipped_warning(own: Assignment, step: int, figures: Mapping[str, float], limit: int) -> str:
    """Return the warning of a skipped step, of which these are the figures."""
    wrong = ", ".join(name for name, value in figures.items() if not isfinite(value))
    return (
        f"warning: student {own.student}, stage {own.stage}, step {step} is skipped: {wrong} not finite. "
        f"At most {limit} steps of a stage may be (training.most_skipped). A lower optim.lr helps."
    )
