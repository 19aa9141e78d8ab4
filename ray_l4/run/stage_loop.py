"""The loop over the stages of a run: training, checkpoints, scores, commits, and recovery from lost students."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_l4.cluster.evaluators import Evaluators
from ray_l4.cluster.membership import Membership
from ray_l4.cluster.rpc import PerRank, get
from ray_l4.cluster.spawn import Spawner
from ray_l4.errors import DamagedError, PeerError, PeerLostError
from ray_l4.run.checkpoints import Checkpoints
from ray_l4.run.context import RunContext
from ray_l4.run.examples import StageExamples
from ray_l4.run.going_back import go_back
from ray_l4.run.retention import Retention
from ray_l4.run.run_log import RunLog
from ray_l4.run.scoring import Scoring
from ray_l4.run.stage_result import StageResult
from ray_l4.run.stage_training import StageTrainer
from ray_l4.run.state_keeper import StateKeeper
from ray_l4.run.states import States
from ray_l4.run.work_queue import WorkQueue
from ray_l4.setup.stage_plan import StagePlan
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.states import states
from ray_l4.workers.log import LogLine
from ray_l4.workers.process import peak_memory_bytes

_MOST_RESTARTS = 3
"""Restarts without progress on disk in between: if a student dies every time, another attempt will not help."""

_LOG_TIMEOUT = 3.0
"""Seconds to wait for the log lines of all students together: idle students answer at once."""

log = logging.getLogger("ray_l4.coordinator")


class StageLoop:
    """Learns the remaining stages of a run, with workers that are ready."""

    def __init__(
        self,
        context: RunContext,
        state: StateKeeper,
        plan: StagePlan,
        spawner: Spawner,
        membership: Membership,
        evaluators: Evaluators,
        teachers: RunDirectory | None,
        disk: ThreadPoolExecutor,
    ) -> None:
        """``teachers``: the run whose checkpoints teach, if any. ``disk``: the thread that writes checkpoints."""
        self._context = context
        self._state = state
        self._plan = plan
        self._rpc = spawner.rpc
        self._membership = membership
        self._evaluators = evaluators
        self._lost_before: Collection[int] = ()
        """The students that were lost before the attempt that failed last."""
        self._forgets = False
        """Whether the scores of the epochs that are learned next are taken again."""
        self._disk = disk
        self._run_log = RunLog(context.directory)
        self._asked_logs: dict[int, PerRank[list[LogLine]]] = {}
        """Student -> its new log lines, which have been asked for."""
        limits = context.cluster.timeouts
        self._queue = WorkQueue(self._rpc, evaluators, limits.work, context.timeline, limits.start)
        self._scoring = Scoring(context, self._rpc, self._queue, lambda: membership.topology.students)
        self._checkpoints = Checkpoints(context, membership, disk)
        self._retention = Retention(context, self._scoring, disk)
        self._states = States(context, state, membership, disk)
        examples = StageExamples(context, self._rpc, membership, self._queue, self._checkpoints, teachers)
        self._trainer = StageTrainer(context, self._rpc, plan, membership, examples, teachers, self._states, self._poll)

    def run(self) -> None:
        """Learn the remaining stages, then wait for all scores."""
        setup, progress = self._context.setup, self._context.progress
        progress.update(num_stages=len(setup.stages))
        for warning in setup.warnings:
            progress.add_event(f"warning: {warning}")
        self._surviving_losses(self._catch_up)
        self._surviving_losses(self._learn_all)
        self._retention.apply(self._state.stages_done)
        evaluators = {f"evaluator-{i}": [self._evaluators[i].peak_memory()] for i in sorted(self._queue.idle)}
        self._state.commit(len(setup.stages), self._peaks(evaluators), self._membership.lost)

    def _learn_all(self) -> None:
        """Learn the remaining stages, then wait for all scores."""
        self._scoring.request_starts(self._membership.topology.students)
        while self._state.stages_done < len(self._context.setup.stages):
            self._learn()
        self._context.progress.update(phase="scoring")
        self._queue.wait(lambda: not len(self._queue), self._between)

    def fetch_logs(self) -> None:
        """Append the students' new log lines to the run's logs. Lines that cannot be fetched now are left for later."""
        self._add_logs(_LOG_TIMEOUT)
        self._ask_for_logs()
        self._add_logs(_LOG_TIMEOUT)

    def _ask_for_logs(self) -> None:
        """Ask the students for their new log lines, unless they have been asked; ``_poll`` adds these to the logs."""
        if not self._asked_logs:
            students = self._membership.students
            self._asked_logs = {slot: students[slot].take_log() for slot in self._membership.present}

    def _add_logs(self, seconds: float) -> None:
        """Add the lines that have been asked for to the run's logs, waiting up to ``seconds`` for them."""
        deadline = time.monotonic() + seconds  # one for all, since they answer side by side
        asked, self._asked_logs = self._asked_logs, {}
        for slot, references in asked.items():
            name = f"student {slot}, log"
            try:
                for lines in self._rpc.get_all({name: references}, max(0.0, deadline - time.monotonic()))[name]:
                    self._run_log.add(lines)
            except (PeerError, OSError) as error:
                log.warning("log lines not fetched: %s", error)

    def _catch_up(self) -> None:
        """After a resume, load the weights of the last finished stage and request the scores that are missing."""
        done = self._state.stages_done
        if not done:
            return
        self._restore()
        self._scoring.request_missing(done, self._checkpoints.descriptions)
        self._states.discard(done - 1)  # left by a process that ended before it removed them
        stages = self._context.setup.stages
        self._context.progress.add_event(f"resumed after {stages[done - 1].name} ({done} of {len(stages)} stages)")

    def _surviving_losses(self, work: Callable[[], None]) -> None:
        """Do ``work``, again after every loss of a student or of what a call needed, and of a file that is damaged.

        Raises PeerLostError or DamagedError after ``_MOST_RESTARTS`` restarts between which nothing new came to the
        disk.
        """
        restarts, progress = 0, self._on_disk()
        failure: PeerLostError | DamagedError | None = None
        while True:
            lost_before = self._membership.lost.keys()
            try:
                if isinstance(failure, DamagedError):
                    self._go_back(failure)
                if failure is not None:
                    self._begin_again(str(failure))
                work()
                return
            except (PeerLostError, DamagedError) as error:
                what = "a file is damaged" if isinstance(error, DamagedError) else "a student is lost"
                log.warning("%s: %s", what, error, exc_info=error)
                failure = error
                self._lost_before = lost_before
                before, progress = progress, self._on_disk()
                restarts = restarts + 1 if progress == before else 1
                if restarts > _MOST_RESTARTS:
                    raise

    def _on_disk(self) -> tuple[int, Path | None]:
        """Return what tells whether the run has made progress that a restart does not lose."""
        done = self._state.stages_done
        return done, next(iter(states(self._context.directory, done)), None)

    def _learn(self) -> None:
        """Learn the next stage, or several that do not depend on each other, from the newest state if there is one."""
        assignments = self._plan.assignments(self._state.stages_done, self._membership.topology.students)
        state = self._states.newest(assignments)
        training = self._trainer.begin(assignments, state, self._between)
        position = None if state is None else state.position
        first, losses = (1, {}) if position is None else (position.epoch, position.validation)
        if self._forgets:  # without a peer, what is learned again ends with other weights
            self._scoring.forget(self._state.stages_done, first)
            self._forgets = False
        if first > 1:
            for stage in sorted({own.stage for own in assignments}):
                self._scoring.request_begun(stage, first, self._checkpoints.descriptions)
        num_epochs = self._context.setup.experiment.epochs_of(assignments[0].stage)
        self._context.progress.update(num_epochs=num_epochs)
        result = StageResult(
            self._context, self._plan, self._membership, self._checkpoints, self._scoring, num_epochs, losses
        )
        training.losses = lambda: result.losses
        training.on_epoch = self._ask_for_logs
        training.stop(result.exhausted())
        epoch = first
        while epoch <= num_epochs and training.learning:
            epochs = training.together(epoch, result.next_pause(epoch))
            training.train(epochs)
            self.fetch_logs()
            result.after(epochs[-1], training)
            self._retention.apply(self._state.stages_done, result.may_return_to)
            epoch = epochs[-1] + 1
        present = training.assignments
        result.choose(present)
        self._context.curves.end_stage(result.num_steps(training))
        if self._context.setup.method.has_guard:
            with self._context.timeline.span(
                "coordinator", "importance", f"importance of weights after {training.where}"
            ):
                self._checkpoints.consolidate(present)
        result.await_written(present)
        peaks = {f"student-{own.slot}": self._membership.students[own.slot].peak_memory() for own in present}
        self._state.commit(max(own.stage for own in assignments) + 1, self._peaks(peaks), self._membership.lost)
        self._states.discard(self._state.stages_done - 1)
        self._retention.apply(self._state.stages_done)
        log.info("stages done: %d of %d", self._state.stages_done, len(self._context.setup.stages))

    def _go_back(self, damage: DamagedError) -> None:
        """Return to the last finished stage that is whole; if all are, to the start of the one under way."""
        context = self._context
        self._states.finish()
        self._scoring.cancel()
        done = go_back(
            context.directory, context.setup, damage, self._state.go_back, self._disk, context.progress.add_event
        )
        self._scoring.reread()
        for evaluator in self._evaluators:  # a checkpoint of the same name may get other weights
            evaluator.forget()
        context.curves.return_to(context.directory.num_steps(done))

    def _begin_again(self, why: str) -> None:
        """Replace or drop the lost students, and return all students to the end of the last finished stage.

        ``why``: the error by which the loss was noticed. Unlike a roll call, it says which step was waited for.
        """
        membership, progress = self._membership, self._context.progress
        lost = membership.roll_call().lost
        graph = membership.topology
        continues = self._context.setup.experiment.peers.on_peer_loss == "continue"
        dropped = bool(lost) and continues and bool(graph.without(lost).students) and not graph.frozen & lost.keys()
        if dropped:
            membership.drop(lost)
        else:
            for slot, how in lost.items():
                named = why.startswith((f"student {slot},", f"student {slot}:"))
                noticed = why if named else f"{how}; noticed at: {why}"
                progress.add_event(f"student {slot} is lost and replaced: {noticed}")
            membership.replace(lost)
        self._retake_scores(dropped or membership.lost.keys() != self._lost_before)
        self._context.curves.restart_stage()
        self._restore()
        self._state.count_restart()

    def _retake_scores(self, with_other_weights: bool) -> None:
        """Request scores that are not there yet from the checkpoints on disk, as their weights may have been lost.

        ``with_other_weights``: whether the epochs that are learned again end with other weights, without a peer.
        """
        done = self._state.stages_done
        self._scoring.cancel()
        self._scoring.request_missing(done, self._checkpoints.descriptions)
        self._forgets = self._forgets or with_other_weights
        if with_other_weights:
            for evaluator in self._evaluators:  # a checkpoint of the same name has other weights
                evaluator.forget()

    def _restore(self) -> None:
        if not self._plan.begins_anew:
            self._checkpoints.restore(self._state.stages_done)

    def _poll(self) -> None:
        """Collect scores. Called after every step."""
        for student in self._membership.lost:  # its weights may never arrive
            self._scoring.go_on_without(self._state.stages_done, student)
        self._queue.poll()
        if self._asked_logs:
            references = [reference for ranks in self._asked_logs.values() for reference in ranks]
            if len(self._rpc.ready(references)) == len(references):
                self._add_logs(0.0)
        self._context.progress.update(jobs_open=len(self._scoring))

    def _between(self) -> None:
        """Collect scores, and stop if the user asked to. Called while the coordinator waits."""
        self._poll()
        self._context.heed_stop()

    def _peaks(self, asked: Mapping[str, PerRank[int]]) -> dict[str, int]:
        """Return worker -> its peak memory in bytes. ``asked``: calls to idle workers only: a busy one answers late."""
        if self._context.cluster.in_one_process:
            return {"process": peak_memory_bytes()}
        peaks: dict[str, Any] = {}
        for name, references in asked.items():
            for rank, reference in enumerate(references):
                worker = name + (f".shard-{rank}" if rank else "")
                try:
                    peaks[worker] = get(self._rpc, reference, self._context.cluster.timeouts.start, worker)
                except PeerError as error:
                    if name.startswith("student"):
                        raise
                    log.warning("%s: peak memory unknown: %s", worker, error)  # all its work is done
        return peaks
