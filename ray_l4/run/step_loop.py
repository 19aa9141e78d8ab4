"""The loop over the steps of a stage, which drives all students."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.rpc import PerRank
from ray_l4.errors import RayL4Error
from ray_l4.methods import Topology

if TYPE_CHECKING:
    from ray_l4.exchange.links import Ticket

StepFigures = Mapping[int, dict[str, float]]
"""Student -> its figures of one step, for the students that learned in it."""


@dataclass(frozen=True)
class StepRules:
    """How the step loop calls students: how far ahead, with which limit, and who predicts the batches."""

    steps_ahead: int
    """Number of steps that are submitted before the loop waits for the oldest."""
    timeout: float
    """Seconds to wait for the figures of a step."""
    stopping: Callable[[], bool] = lambda: False
    """Whether to submit no more steps; the loop then collects those under way and returns."""
    asks_teachers: bool = False
    """Whether every teacher is asked to predict a student's batch, even if it learns in the same step."""


@dataclass(frozen=True)
class _Submitted:
    """The calls that were submitted together: student -> its step, and references to its figures."""

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
    rules: StepRules,
    *,
    where: str,
    on_step: Callable[[int, StepFigures], None],
    on_submit: Callable[[Mapping[int, int]], Callable[[], None] | None] = _nothing,
) -> None:
    """Train students side by side, each over its own ``steps``, on their teachers' predictions of the same step.

    Students that depend on each other, or on one teacher, have the same steps; models that are trained independently
    may be at different ones. A teacher that learns in the same step publishes the predictions of its forward pass. Any
    other teacher (a frozen peer, or a student that waits for its turn) is asked to predict the student's batch; so are
    all with ``rules.asks_teachers``, each for one student at a time, once the student has given its own answers.

    A step takes one call: a student learns it and begins the next one. Calls are submitted ``rules.steps_ahead`` steps
    early, so no student waits for the coordinator. Predictions go from student to student, and the loop drops its
    references to them at once. ``on_step`` gets the figures of every step late and some steps at a time, but in order
    for each student. ``on_submit`` is called between two steps, with the step that each student was just asked to
    learn; what it returns, if anything, is called once the figures of these steps are known.

    Raises the error of the first call that failed: PeerLostError if a student dies or does not answer within
    ``rules.timeout`` seconds. ``where`` names the stage in messages.
    """
    pipeline = _Pipeline(students, topology, fence, rules, where, on_step)
    num_turns = max(map(len, steps.values()))

    def steps_of(turn: int) -> dict[int, int]:
        return {student: own[turn] for student, own in steps.items() if turn < len(own)}

    for turn in range(num_turns):
        if rules.stopping():
            break
        learning = steps_of(turn)
        submitted = pipeline.submit(learning, steps_of(turn + 1))
        pipeline.keep(replace(submitted, then=on_submit(learning)))
    pipeline.drain()


class _Pipeline:
    """The steps that have been submitted, and the tickets with which each student's next step has begun."""

    def __init__(
        self,
        students: Sequence[StudentHandle],
        topology: Topology,
        fence: int,
        rules: StepRules,
        where: str,
        on_step: Callable[[int, StepFigures], None],
    ) -> None:
        self._students = students
        self._rpc = students[0].rpc
        self._topology = topology
        self._fence = fence
        self._rules = rules
        self._where = where
        self._on_step = on_step
        self._begun: dict[int, PerRank[Ticket]] = {}
        self._window: deque[_Submitted] = deque()

    def submit(self, learning: Mapping[int, int], following: Mapping[int, int]) -> _Submitted:
        """Submit one step of every student. ``learning``: student -> its step; ``following``: the same one turn on."""
        students, fence = self._students, self._fence
        readers, later = self._readers(learning), self._readers(following)
        sent = {
            peer: self._begun.pop(peer) if peer in self._begun else students[peer].forward(fence, step, readers[peer])
            for peer, step in learning.items()
        }
        taught = self._ask(learning, sent) if self._rules.asks_teachers else self._shared(learning, readers, sent)
        figures = {}
        for peer, step in learning.items():
            teachers = taught[peer]
            if peer in following:
                readers_then = later[peer]
                figures[peer], self._begun[peer] = students[peer].advance(
                    fence, step, readers_then, sent[peer], teachers
                )
            else:
                figures[peer] = students[peer].backward(fence, step, sent[peer], teachers)
        return _Submitted(learning, figures)

    def _shared(
        self,
        learning: Mapping[int, int],
        readers: Mapping[int, Sequence[int]],
        sent: Mapping[int, PerRank[Ticket]],
    ) -> dict[int, list[PerRank[Ticket]]]:
        """Return student -> its teachers' tickets, where all have the same batch. ``sent``: student -> its own."""
        tickets = dict(sent)
        # Students that learn from one teacher share the batch, so it predicts the batch of the first of them.
        student, first_step = next(iter(learning.items()))
        for teacher, own in readers.items():
            if own and teacher not in tickets:
                tickets[teacher] = self._students[teacher].predict(self._fence, first_step, student, own)
        return {peer: [tickets[teacher] for teacher in self._topology.teachers_of(peer)] for peer in learning}

    def _ask(
        self, learning: Mapping[int, int], sent: Mapping[int, PerRank[Ticket]]
    ) -> dict[int, list[PerRank[Ticket]]]:
        """Ask each student's teachers to predict its batch; returns student -> their tickets. ``sent``: as above."""
        return {
            peer: [
                self._students[teacher].predict(self._fence, step, peer, (peer,), teacher not in learning, sent[peer])
                for teacher in self._topology.teachers_of(peer)
            ]
            for peer, step in learning.items()
        }

    def keep(self, submitted: _Submitted) -> None:
        """Add submitted steps to those under way; if these are too many, wait for the older half of them."""
        self._window.append(submitted)
        if len(self._window) > self._rules.steps_ahead:
            self._collect((len(self._window) + 1) // 2)

    def drain(self) -> None:
        """Wait for all steps that have been submitted."""
        self._collect(len(self._window))

    def _readers(self, learning: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
        """Return the readers of every student that learns and of every teacher, while these students learn.

        Nobody reads the predictions of a student's own batch if teachers are asked.
        """
        edges = () if self._rules.asks_teachers else self._topology.edges
        return {
            teacher: tuple(peer for peer in learning if (teacher, peer) in edges)
            for teacher in sorted({teacher for teacher, _ in edges} | learning.keys())
        }

    def _collect(self, count: int) -> None:
        """Collect the figures of the oldest ``count`` steps, with a single wait for all of them."""
        oldest = [self._window.popleft() for _ in range(count)]
        try:
            values = self._values(oldest, self._rules.timeout)
        except RayL4Error:
            self._deliver_finished(oldest)
            raise
        for own in oldest:
            self._deliver(own, values)

    def _deliver_finished(self, oldest: Sequence[_Submitted]) -> None:
        """Deliver the steps before the one that failed, so that a state taken after them is not lost with it."""
        for own in oldest:
            references = [reference for ranks in own.figures.values() for reference in ranks]
            if len(self._rpc.ready(references)) < len(references):
                return
            try:
                values = self._values([own], self._rules.timeout)
            except RayL4Error:
                return  # the error that is about to be raised
            self._deliver(own, values)

    def _values(self, submitted: Sequence[_Submitted], timeout: float) -> Mapping[str, Sequence[dict[str, float]]]:
        named = {self._name(peer, own): own.figures[peer] for own in submitted for peer in own.figures}
        return self._rpc.get_all(named, timeout) if named else {}

    def _deliver(self, own: _Submitted, values: Mapping[str, Sequence[dict[str, float]]]) -> None:
        by_step: dict[int, dict[int, dict[str, float]]] = {}
        for peer, step in own.steps.items():
            by_step.setdefault(step, {})[peer] = values[self._name(peer, own)][0]
        for step, by_peer in by_step.items():
            self._on_step(step, by_peer)
        if own.then is not None:
            own.then()

    def _name(self, peer: int, own: _Submitted) -> str:
        return f"student {peer}, {self._where}, step {own.steps[peer]}, figures"
