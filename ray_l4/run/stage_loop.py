"""The loop over the stages of a run: training, checkpoints, scores, commits, and recovery from lost students."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray_l4.cluster.evaluators import Evaluators
from ray_l4.cluster.membership import Membership
from ray_l4.cluster.rpc import PerRank, get
from ray_l4.cluster.spawn import Spawner
from ray_l4.errors import PeerError, PeerLostError
from ray_l4.run.checkpoints import Checkpoints
from ray_l4.run.context import RunContext
from ray_l4.run.examples import StageExamples
from ray_l4.run.retention import Retention
from ray_l4.run.run_log import RunLog
from ray_l4.run.scoring import Scoring
from ray_l4.run.stage_result import StageResult
from ray_l4.run.stage_training import StageTrainer
from ray_l4.run.state_keeper import StateKeeper
from ray_l4.run.work_queue import WorkQueue
from ray_l4.setup.stage_plan import Assignment, StagePlan
from ray_l4.store.run_directory import RunDirectory
from ray_l4.workers.process import peak_memory_bytes

_MOST_RESTARTS = 3
"""Restarts of one stage: if a student dies every time, another attempt will not help."""

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
        self._run_log = RunLog(context.directory)
        limits = context.cluster.timeouts
        self._queue = WorkQueue(self._rpc, evaluators, limits.work, context.timeline, limits.start)
        self._scoring = Scoring(context, self._rpc, self._queue)
        self._checkpoints = Checkpoints(context, membership, disk)
        self._retention = Retention(context, self._scoring, disk)
        examples = StageExamples(context, self._rpc, membership, self._queue, self._checkpoints.descriptions, teachers)
        self._trainer = StageTrainer(context, self._rpc, plan, membership, examples, teachers)

    def run(self) -> None:
        """Learn the remaining stages, then wait for all scores."""
        setup, progress = self._context.setup, self._context.progress
        progress.update(num_stages=len(setup.stages), num_epochs=setup.experiment.training.epochs)
        for warning in setup.warnings:
            progress.add_event(f"warning: {warning}")
        self._catch_up()
        while self._state.stages_done < len(setup.stages):
            self._learn()
        progress.update(phase="scoring")
        self._queue.wait(lambda: not len(self._queue), self._between)
        self._retention.apply(self._state.stages_done)
        evaluators = {f"evaluator-{i}": [own.peak_memory()] for i, own in enumerate(self._evaluators)}
        self._state.commit(len(setup.stages), self._peaks(evaluators), self._membership.lost)

    def fetch_logs(self) -> None:
        """Append the students' new log lines to the run's logs. Lines that cannot be fetched now are left for later."""
        asked = {slot: self._membership.students[slot].take_log() for slot in self._membership.present}
        deadline = time.monotonic() + _LOG_TIMEOUT  # one for all, since they answer side by side
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
        stages = self._context.setup.stages
        self._context.progress.add_event(f"resumed after {stages[done - 1].name} ({done} of {len(stages)} stages)")

    def _learn(self) -> None:
        """Learn the next stage, or several that do not depend on each other; begin again if a student is lost.

        Raises PeerLostError if a student is lost again after ``_MOST_RESTARTS`` restarts.
        """
        for attempt in range(_MOST_RESTARTS + 1):
            lost_before = self._membership.lost.keys()
            assignments = self._plan.assignments(self._state.stages_done, self._membership.topology.students)
            try:
                self._learn_to_the_end(assignments)
                return
            except PeerLostError as error:
                log.warning("a student is lost: %s", error, exc_info=error)
                if attempt == _MOST_RESTARTS:
                    raise
                self._begin_again(assignments, lost_before, error)

    def _learn_to_the_end(self, assignments: Sequence[Assignment]) -> None:
        training = self._trainer.begin(assignments, self._between)
        result = StageResult(self._context, self._plan, self._membership, self._checkpoints, self._scoring)
        for epoch in range(1, self._context.setup.experiment.training.epochs + 1):
            training.epoch(epoch)
            self.fetch_logs()
            result.after(epoch, training)
            self._retention.apply(self._state.stages_done, result.may_return_to)
            if not training.learning:
                break
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
        self._retention.apply(self._state.stages_done)
        log.info("stages done: %d of %d", self._state.stages_done, len(self._context.setup.stages))

    def _begin_again(
        self, assignments: Sequence[Assignment], lost_before: Collection[int], error: PeerLostError
    ) -> None:
        """Replace or drop the lost students, and return all students to the end of the last finished stage.

        ``lost_before``: those that were lost before this attempt. Raises ``error`` if no student was lost since.
        """
        membership, progress = self._membership, self._context.progress
        lost = membership.roll_call().lost
        if not lost and membership.lost.keys() == lost_before:
            raise error
        graph = membership.topology
        continues = self._context.setup.experiment.peers.on_peer_loss == "continue"
        if continues and graph.without(lost).students and not graph.frozen & lost.keys():
            membership.drop(lost)
        else:
            for slot, how in lost.items():
                progress.add_event(f"student {slot} is lost and replaced: {how}")
            membership.replace(lost)
        for stage in {own.stage for own in assignments}:
            self._scoring.forget(stage)
        for evaluator in self._evaluators:  # without a peer, a checkpoint of the same name has other weights
            evaluator.forget()
        self._context.curves.restart_stage()
        self._restore()
        self._state.count_restart()
        progress.add_event(f"learning again from the end of stage {self._state.stages_done}")

    def _restore(self) -> None:
        if not self._plan.begins_anew:
            self._checkpoints.restore(self._state.stages_done)

    def _between(self) -> None:
        """Collect scores, and stop if the user asked to. Called after every step, and while the coordinator waits."""
        for student in self._membership.lost:  # its weights may never arrive
            self._scoring.forget(self._state.stages_done, student)
        self._queue.poll()
        self._context.progress.update(jobs_open=len(self._scoring))
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
                except PeerLostError as error:
                    if name.startswith("student"):
                        raise
                    log.warning("%s: peak memory unknown: %s", worker, error)  # all its work is done
        return peaks
