"""The training of one stage: its students begin it, and then learn its epochs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from ray_l4.cluster.membership import Membership, levelled
from ray_l4.cluster.rpc import PerRank, Ref, Rpc
from ray_l4.errors import NonFiniteError, PeerLostError
from ray_l4.monitor.progress import StudentProgress
from ray_l4.run.context import RunContext
from ray_l4.run.epoch_figures import EpochFigures
from ray_l4.run.equal_peers import EqualPeers
from ray_l4.run.examples import StageExamples, StudentExamples
from ray_l4.run.failed_batch import kept_failed_step, skipped_warning
from ray_l4.run.peer_teachers import peer_weights
from ray_l4.run.states import States, position_of
from ray_l4.run.step_loop import StepFigures, StepRules, train_steps
from ray_l4.run.teachers import teacher_weights
from ray_l4.run.training_watch import TrainingWatch
from ray_l4.setup.stage_plan import Assignment, StagePlan
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.states import State

log = logging.getLogger("ray_l4.coordinator")


class StageTrainer:
    """Begins the training of stages, one after another."""

    def __init__(
        self,
        context: RunContext,
        rpc: Rpc,
        plan: StagePlan,
        membership: Membership,
        examples: StageExamples,
        teachers: RunDirectory | None,
        states: States,
        poll: Callable[[], None],
    ) -> None:
        """``teachers``: the run whose checkpoints teach, if any. ``poll`` is called after every step."""
        self._context = context
        self._rpc = rpc
        self._states = states
        self._poll = poll
        self._plan = plan
        self._membership = membership
        self._examples = examples
        self._teachers = teachers
        self._equal_peers = EqualPeers(context, rpc, membership)

    def begin(
        self, assignments: Sequence[Assignment], state: State | None, on_nap: Callable[[], None]
    ) -> StageTraining:
        """Collect the examples, have all workers begin the stage, and return its training.

        ``state``: the one to continue from, if any. ``on_nap`` is called while the coordinator waits.
        """
        context = self._context
        stages = sorted({own.stage for own in assignments})
        where = " and ".join(context.setup.stages[stage].name for stage in stages)
        context.progress.update(stage=stages[0], task=where, epoch=0, step=0, num_steps=0, phase="replay")
        context.progress.update(students=[StudentProgress() for _ in assignments])
        for own in assignments if self._plan.begins_anew else ():
            self._call(own.slot, self._membership.students[own.slot].reset(), "reset")
        with context.timeline.span("coordinator", "replay", f"examples for {where}"):
            given = {stage: self._examples.of(stage, on_nap) for stage in stages}
        examples = {own.slot: (own.stage, given[own.stage][own.student]) for own in assignments}
        last_steps = self._begin_all(assignments, examples)
        if state is None:
            tables = {slot: own.tokens for slot, (_, own) in examples.items()}
            self._equal_peers.look(self._plan.topology_of(stages[0], self._membership.topology), tables)
        else:
            self._resume_all(assignments, state)
        counts = " and ".join(
            str(own.num_examples) for own in {own.stage: examples[own.slot][1] for own in assignments}.values()
        )
        num_steps = max(last[-1] + 1 for last in last_steps.values())
        steps_of = {own.stage: last_steps[own.slot][-1] + 1 for own in assignments}
        context.curves.begin_stage(sum(steps_of.values()))
        done = 0 if state is None else min(own.next_step for own in state.position.workers)
        self._expect_steps(stages, num_steps - done, len(assignments))
        going_on = f"; going on after {done}" if done else ""
        if context.setup.method.learns:
            context.progress.add_event(f"learning {where} from {counts} examples in {num_steps} steps{going_on}")
        else:
            context.progress.add_event(f"remembering {counts} examples of {where}, without training")
        context.progress.update(phase="training", num_steps=num_steps)
        training = StageTraining(context, self._plan, self._membership, assignments, last_steps, self._states)
        training.poll = self._poll
        graph = self._plan.topology_of(stages[0], self._membership.topology)
        training.watch = TrainingWatch(context, stages, graph, state).see
        if state is not None:
            training.continue_from(state)
        return training

    def _resume_all(self, assignments: Sequence[Assignment], state: State) -> None:
        """Have all students continue from ``state``."""
        students, fence = self._membership.students, self._membership.fence
        asked = {own.slot: students[own.slot].resume(fence, state.parts[own.slot]) for own in assignments}
        for slot, references in asked.items():
            self._call(slot, references, "continue from a state")

    def _begin_all(
        self, assignments: Sequence[Assignment], examples: dict[int, tuple[int, StudentExamples]]
    ) -> dict[int, list[int]]:
        """Have all workers of a stage begin it under a new fence. Returns slot -> the last step of each epoch."""
        membership = self._membership
        topology = self._plan.topology_of(assignments[0].stage, membership.topology)
        for peer in topology.frozen:
            examples[peer] = examples[assignments[0].slot]
        self._load_teachers(sorted(topology.frozen), assignments)
        fence = membership.raise_fence()
        if topology.edges:
            membership.form_groups()
        began = {
            slot: membership.students[slot].begin(fence, stage, given.tokens, given.memory)
            for slot, (stage, given) in examples.items()
        }
        ends = {slot: self._call(slot, references, "begin") for slot, references in began.items()}
        return {own.slot: ends[own.slot] for own in assignments}

    def _load_teachers(self, frozen: Sequence[int], assignments: Sequence[Assignment]) -> None:
        """Load the weights with which the ``frozen`` peers teach the stage of ``assignments``.

        Where they are students of a finished run, the students begin with the weights of the first of them.
        """
        experiment, students = self._context.setup.experiment, self._membership.students
        begins_taught = self._context.setup.method.has_peer_teachers
        for number, peer in enumerate(frozen):
            if self._teachers is None:
                student = students[self._membership.topology.students[0]]
                weights: Ref[Any] = student.await_weights(self._context.cluster.timeouts.start)
            elif begins_taught:
                named = experiment.teachers.students[number]
                weights = self._rpc.put(peer_weights(self._teachers, experiment, named))
            else:
                weights = self._rpc.put(teacher_weights(self._teachers, assignments[0].stage))
            first = [own.slot for own in assignments] if begins_taught and not number else []
            for slot in (peer, *first):
                self._call(slot, students[slot].load(weights), "load")

    def _expect_steps(self, stages: Sequence[int], steps: int, num_students: int) -> None:
        """Estimate the steps of the whole run from the current ``stages`` and the sizes of later ones."""
        setup, progress = self._context.setup, self._context.progress
        in_turn = setup.experiment.distillation.schedule == "alternate_epochs"
        steps *= num_students if in_turn else 1
        current = max(setup.num_examples(stage) for stage in stages)
        later = sum(setup.num_examples(stage) for stage in range(max(stages) + 1, len(setup.stages)))
        done = progress.snapshot().steps_done
        progress.update(steps_total=done + steps + round(steps * later / current / len(stages)))

    def _call(self, slot: int, references: PerRank[Any], what: str) -> Any:
        return self._membership.students[slot].wait(references, self._context.cluster.timeouts.start, what)


class StageTraining:
    """The training of a stage that its students have begun, or of several that do not depend on each other."""

    def __init__(
        self,
        context: RunContext,
        plan: StagePlan,
        membership: Membership,
        assignments: Sequence[Assignment],
        last_steps: Mapping[int, Sequence[int]],
        states: States,
    ) -> None:
        """``last_steps``: slot -> the last step of each epoch."""
        self._context = context
        self._plan = plan
        self._membership = membership
        self._assignments = assignments
        self._last_steps = last_steps
        self._states = states
        self._stopped: set[int] = set()
        self._next = {own.slot: 0 for own in assignments}
        self._figures = EpochFigures(context.directory, {own.stage: last_steps[own.slot] for own in assignments})
        self._epochs = range(1, 2)
        """The epochs that are trained as one now."""
        self._epoch = 1
        """The epoch of the newest figures."""
        self._epoch_began = time.monotonic()
        self.poll: Callable[[], None] = lambda: None
        """Called after every step."""
        self.on_epoch: Callable[[], None] = lambda: None
        """Called after every epoch."""
        self.watch: Callable[[int, int, StepFigures], None] = lambda stage, step, figures: None
        """Called with stage and step, and the figures of the students that learned in it."""
        self.losses: Callable[[], Mapping[str, Sequence[Mapping[str, float]]]] = dict
        """Returns the validation losses of the finished epochs, which belong to a state."""
        self.where = " and ".join(context.setup.stages[stage].name for stage in sorted({a.stage for a in assignments}))
        exchange, limits = context.cluster.exchange, context.cluster.timeouts
        asks = context.setup.experiment.distillation.asks_teachers
        self._rules = StepRules(exchange.steps_ahead, limits.step, context.stop.is_set, asks)

    def continue_from(self, state: State) -> None:
        """Begin where ``state`` was taken: with its position and its figures."""
        for worker in state.position.workers:
            if worker.slot in self._next:
                self._next[worker.slot] = worker.next_step
        self._figures.continue_from(state)

    @property
    def assignments(self) -> list[Assignment]:
        """The assignments of the students that are present."""
        return [own for own in self._assignments if own.slot in self._membership.present]

    @property
    def learning(self) -> list[Assignment]:
        """Those whose stage has not been stopped."""
        return [own for own in self.assignments if own.stage not in self._stopped]

    def stop(self, stages: Collection[int]) -> None:
        """Stop the training of ``stages`` before their last epoch."""
        self._stopped |= set(stages)

    def num_steps(self, epoch: int) -> dict[int, int]:
        """Return stage -> the number of its steps up to the end of ``epoch``."""
        return {own.stage: self._last_steps[own.slot][epoch - 1] + 1 for own in self._assignments}

    def together(self, first: int, last: int) -> range:
        """Return the epochs from ``first`` to ``last`` that can be trained as one: all, or only the first.

        Students that take turns, or whose epochs end at different steps, train one epoch at a time.
        """
        ends = {tuple(self._last_steps[own.slot]) for own in self.learning}
        in_turn = self._context.setup.experiment.distillation.schedule != "simultaneous"
        return range(first, first + 1 if in_turn or len(ends) > 1 else last + 1)

    def train(self, epochs: range) -> None:
        """Train these epochs (counted from 1), and write the figures of their steps.

        No student waits where one epoch ends and the next begins. With ``peers.on_peer_loss: continue``, lost students
        are dropped and the others go on; otherwise a loss raises PeerLostError. Raises PeerError if a student fails.
        """
        self._epochs = epochs
        self._begin_epoch(epochs.start)
        on_step = self._on_step()
        for side_by_side in self._plan.passes(self._steps_of(self.learning, epochs)):
            self._pass(self._ahead(side_by_side), on_step)
        self._end_epoch()
        self._figures.finish()

    def _begin_epoch(self, epoch: int) -> None:
        self._epoch, self._epoch_began = epoch, time.monotonic()
        self._context.progress.update(epoch=epoch)

    def _end_epoch(self) -> None:
        """Show in the timeline what each student has just trained."""
        for own in self.learning:
            label = f"{self._context.setup.stages[own.stage].name}, epoch {self._epoch}"
            seconds = time.monotonic() - self._epoch_began
            self._context.timeline.add(f"student {own.slot}", "training", label, seconds)
        self.on_epoch()

    def _ahead(self, together: Mapping[int, range]) -> dict[int, range]:
        """Return what is left of these steps (by slot) after those that were learned before."""
        left = {slot: range(max(steps.start, self._next[slot]), steps.stop) for slot, steps in together.items()}
        return {slot: steps for slot, steps in left.items() if steps}

    def _pass(self, together: Mapping[int, range], on_step: Callable[[int, StepFigures], None]) -> None:
        """Learn the steps of one pass (slot -> its steps), with the students that are present."""
        membership, stage = self._membership, self._assignments[0].stage
        ends = {slot: steps.stop for slot, steps in together.items() if slot in membership.present}
        spans = [{slot: together[slot] for slot in ends}] if ends else []
        while spans:
            try:
                is_level = len(spans) == 1
                train_steps(
                    membership.students,
                    self._plan.topology_of(stage, membership.topology),
                    membership.fence,
                    spans[0],
                    self._rules,
                    where=self.where,
                    on_step=on_step,
                    on_submit=partial(self._after_submission, is_level),
                )
                self._heed_stop(is_level)
                spans.pop(0)
            except NonFiniteError as error:
                raise kept_failed_step(self._context, membership, self._assignments, error) from error
            except PeerLostError as error:
                if self._context.setup.experiment.peers.on_peer_loss != "continue":
                    raise
                spans = self._continue_without_lost(ends, error)

    def _after_submission(self, is_level: bool, steps: Mapping[int, int]) -> Callable[[], None] | None:
        """Take a state if one is due. Returns what has it written, once the figures of ``steps`` are known.

        ``is_level``: whether no student is behind the others after the loss of one: a state is taken of equals only.
        """
        self._next |= {slot: step + 1 for slot, step in steps.items()}
        return self._take() if is_level and self._states.due() else None

    def _take(self) -> Callable[[], None]:
        """Ask all students for their state. Returns what has it written with the figures that are known by then."""
        first = self.learning[0]
        # Before the first step of these epochs, what follows the epoch before has been done.
        epoch = max(self._figures.epoch_of(first.stage, self._next[first.slot] - 1), self._epochs.start)
        write = self._states.take(position_of(epoch, self.assignments, self._next, self.losses()))
        return lambda: write(self._figures.all())

    def _heed_stop(self, is_level: bool) -> None:
        """If the user asked the run to stop, write a state, unless a student is behind, and raise StoppedError."""
        if self._context.stop.is_set():
            self._states.finish()
            if is_level:
                self._take()()
                self._states.finish()
            self._context.heed_stop()

    def _continue_without_lost(self, ends: Mapping[int, int], error: PeerLostError) -> list[dict[int, range]]:
        """Drop the lost students, and return the spans of steps that the others still have to learn.

        From now on a student's targets are the mean over its remaining teachers. The figures of the steps that were
        under way are not recorded. Raises ``error`` if the others cannot go on without the lost students.
        """
        membership = self._membership
        roll = membership.roll_call()
        self._states.finish()  # one that was asked for in the steps under way is not taken
        if not roll.lost or membership.topology.frozen & roll.lost.keys() or not roll.next_steps:
            raise error
        membership.drop(roll.lost)
        for slot, how in roll.lost.items():
            self._context.progress.add_event(f"student {slot} is lost; the others go on without it: {how}")
        membership.form_groups()
        self._next |= roll.next_steps  # what was submitted and not learned is still ahead
        remaining = {slot: end for slot, end in ends.items() if slot in roll.next_steps}
        return levelled(roll.next_steps, remaining) if remaining else []

    def _steps_of(self, assignments: Sequence[Assignment], epochs: range) -> dict[int, range]:
        """Return slot -> its steps of the epochs."""
        first, last = epochs[0], epochs[-1]
        ends = {own.slot: self._last_steps[own.slot] for own in assignments}
        return {slot: range(0 if first == 1 else own[first - 2] + 1, own[last - 1] + 1) for slot, own in ends.items()}

    def _watch(self, step: int, figures: StepFigures) -> None:
        """Show the figures of a step to whoever warns of training that goes wrong."""
        by_stage: dict[int, dict[int, dict[str, float]]] = {}
        for own in self._assignments:
            if own.slot in figures:
                by_stage.setdefault(own.stage, {})[own.student] = figures[own.slot]
        for stage, learned in by_stage.items():
            self.watch(stage, step, learned)

    def _on_step(self) -> Callable[[int, StepFigures], None]:
        """Return the callback that shows the figures of a step and adds them to those of its epoch."""
        by_slot = {own.slot: (index, own) for index, own in enumerate(self._assignments)}
        last_time = time.monotonic()

        def on_step(step: int, figures: StepFigures) -> None:
            nonlocal last_time
            now = time.monotonic()
            shown = {by_slot[slot][0]: own for slot, own in figures.items() if not own.get("skipped")}
            self._context.progress.record_step(step, shown, now - last_time)
            last_time = now
            for slot, values in figures.items():
                _, own = by_slot[slot]
                epoch = self._figures.epoch_of(own.stage, step)
                if epoch > self._epoch:
                    self._end_epoch()
                    self._begin_epoch(epoch)
                self._figures.add(own.stage, step, own.student, values)
                log.debug("figures of stage %d, step %d, student %d", own.stage, step, own.student)
                if values.get("skipped"):
                    limit = self._context.setup.experiment.training.most_skipped
                    self._context.progress.add_event(skipped_warning(own, step, values, limit))
            self._watch(step, figures)
            curves = {
                self._plan.curve_name(by_slot[slot][1]): values
                for slot, values in figures.items()
                if not values.get("skipped")
            }
            self._context.curves.log_step(step, curves)
            self.poll()

        return on_step
