"""The loop over the steps of a stage, which drives all students."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.rpc import PerRank
from ray_l4.methods import Topology

if TYPE_CHECKING:
    from ray_l4.exchange.links import Ticket

StepFigures = Mapping[int, dict[str, float]]
"""Student -> its figures of one step, for the students that learned in it."""


@dataclass(frozen=True)
class StepLimits:
    """Limits of the step loop: how far ahead calls are submitted, and how long they may take."""

    steps_ahead: int
    """Number of steps that are submitted before the loop waits for the oldest."""
    timeout: float
    """Seconds to wait for the figures of a step."""
    stopping: Callable[[], bool] = lambda: False
    """Whether to submit no more steps; the loop then collects those under way and returns."""


@dataclass(frozen=True)
class _Submitted:
    """The ``backward`` calls that were submitted together: student -> its step, and references to its figures."""

    steps: Mapping[int, int]
    figures: Mapping[int, PerRank[dict[str, float]]]
    then: Callable[[], None] | None = None
    """What to do once the figures have been collected."""


def _nothing(steps: Mapping[int, int]) -> None:
    """Do nothing after a step is submitted."""


def train_steps(
    students: Sequence[StudentHandle],
    topology: Topology,
    fence: int,
    steps: Mapping[int, range],
    limits: StepLimits,
    *,
    where: str,
    on_step: Callable[[int, StepFigures], None],
    on_submit: Callable[[Mapping[int, int]], Callable[[], None] | None] = _nothing,
) -> None:
    """Train students side by side, each over its own ``steps``, on their teachers' predictions of the same step.

    Students that depend on each other, or on one teacher, have the same steps; models that are trained independently
    may be at different ones. A teacher that learns in the same step publishes the predictions of its forward pass. Any
    other teacher (a frozen peer, or a student that waits for its turn) is asked to predict the student's batch.

    Calls are submitted ``limits.steps_ahead`` steps early, so no student waits for the coordinator. Predictions go from
    student to student, and the loop drops its references to them at once. ``on_step`` gets the figures of every step
    late, but in order for each student. ``on_submit`` is called between two steps, with the step that each student was
    just asked to learn; what it returns, if anything, is called once the figures of these steps are known.

    Raises the error of the first call that failed: PeerLostError if a student dies or does not answer within
    ``limits.timeout`` seconds. ``where`` names the stage in messages.
    """
    window: deque[_Submitted] = deque()
    for turn in range(max(map(len, steps.values()))):
        if limits.stopping():
            break
        learning = {student: own[turn] for student, own in steps.items() if turn < len(own)}
        submitted = _submit(students, topology, fence, learning)
        window.append(replace(submitted, then=on_submit(learning)))
        if len(window) > limits.steps_ahead:
            _collect(students, window.popleft(), limits.timeout, where, on_step)
    while window:
        _collect(students, window.popleft(), limits.timeout, where, on_step)


def _submit(
    students: Sequence[StudentHandle], topology: Topology, fence: int, learning: Mapping[int, int]
) -> _Submitted:
    """Submit one step of every student. ``learning``: student -> its step."""
    readers = {
        teacher: tuple(peer for peer in learning if (teacher, peer) in topology.edges)
        for teacher in sorted({teacher for teacher, _ in topology.edges} | learning.keys())
    }
    sent: dict[int, PerRank[Ticket]] = {
        peer: students[peer].forward(fence, step, readers[peer]) for peer, step in learning.items()
    }
    # Students that learn from one teacher share the batch, so it predicts the batch of the first of them.
    student, first_step = next(iter(learning.items()))
    for teacher, own in readers.items():
        if own and teacher not in sent:
            sent[teacher] = students[teacher].predict(fence, first_step, student, own)
    figures = {
        peer: students[peer].backward(
            fence, step, sent[peer], [sent[teacher] for teacher in topology.teachers_of(peer)]
        )
        for peer, step in learning.items()
    }
    return _Submitted(learning, figures)


def _collect(
    students: Sequence[StudentHandle],
    submitted: _Submitted,
    timeout: float,
    where: str,
    on_step: Callable[[int, StepFigures], None],
) -> None:
    names = {peer: f"student {peer}, {where}, step {step}" for peer, step in submitted.steps.items()}
    rpc = students[next(iter(names))].rpc
    values = rpc.get_all({names[peer]: own for peer, own in submitted.figures.items()}, timeout)
    by_step: dict[int, dict[int, dict[str, float]]] = {}
    for peer, step in submitted.steps.items():
        by_step.setdefault(step, {})[peer] = values[names[peer]][0]
    for step, by_peer in by_step.items():
        on_step(step, by_peer)
    if submitted.then is not None:
        submitted.then()
