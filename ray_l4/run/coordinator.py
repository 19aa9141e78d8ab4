"""Drives a run from task to task: replay, training, checkpoints, scores. It alone writes the run directory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ray_l4.cluster.spawn import Workers, absent, hire_anew
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import PeerLostError, RayL4Error
from ray_l4.monitor.progress import Progress
from ray_l4.monitor.tensorboard import TensorBoardLog
from ray_l4.monitor.timeline import Timeline
from ray_l4.report.summary import summarise
from ray_l4.run.checkpoints import Checkpoints
from ray_l4.run.examples import Material
from ray_l4.run.mirroring import Mirroring
from ray_l4.run.scoring import Scoring
from ray_l4.run.stage_training import Training
from ray_l4.run.teachers import open_teachers
from ray_l4.run.work_queue import WorkPool
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import Seat, groups, peers_of
from ray_l4.store.atomic import write_json
from ray_l4.store.records import ADAPTERS
from ray_l4.store.run_directory import RunDirectory
from ray_l4.workers.student import peak_memory_bytes

Hire = Callable[[Setup, ClusterConfig, Sequence[int]], Workers]


_MOST_RESTARTS = 3
"""Times that one stage is learned again: a student that dies every time has a reason that another try does not mend."""


class StoppedError(RayL4Error):
    """The user asked the run to stop."""

    exit_code = 130


class Coordinator:
    """One run. ``run()`` does it all; ``progress`` and ``stop()`` may be used from other threads."""

    def __init__(
        self,
        setup: Setup,
        cluster: ClusterConfig,
        run: RunDirectory,
        hire: Hire,
        places: int,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
        mirroring: Mirroring | None = None,
    ) -> None:
        """``hire`` makes the workers when the run begins, at most ``places`` students at a time.

        ``progress``, ``stop`` and ``mirroring``: those of the run that this one is a part of.
        """
        self.progress = progress or Progress()
        self._is_part = mirroring is not None
        self._setup = setup
        self._cluster = cluster
        self._run = run
        self._hire = hire
        self._places = places
        self._stop = stop or threading.Event()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self._state = run.state()
        done = {(row["stage"], row["step"]) for row in run.step_figures() if row["stage"] < self._state.stages_done}
        self._board = TensorBoardLog(run.path / "tensorboard", steps_before=len(done))
        self._timeline = Timeline(run)
        self._mirroring = mirroring or Mirroring(run, cluster, self.progress.add_event)

    def run(self) -> dict[str, Any]:
        """Learn the stages that are not done, wait for every score, and give the summary.

        Raises ClusterError, ModelError or PeerError if the workers cannot start, PeerError if one fails later,
        StoppedError if asked to; what is on disk stays valid in any case.
        """
        self._began = time.monotonic()
        try:
            self._teachers = self._train_teachers()
            self._count_time_of_teachers()
            self._crew = self._hire(self._setup, self._cluster, peers_of(self._setup, self._places))
            self._prepare()
            self._catch_up()
            while self._state.stages_done < len(self._setup.stages):
                self._learn()
            self.progress.update(phase="scoring")
            self._pool.wait(lambda: not len(self._pool), self._between)
            evaluators = {f"evaluator-{i}": evaluator for i, evaluator in enumerate(self._crew.evaluators)}
            self._save_state(len(self._setup.stages), self._memory(evaluators))
        finally:
            self._disk.shutdown(wait=True)
            self._board.close()
            self._timeline.save()
            if not self._is_part:
                self._mirroring.finish()
        self._crew.dismiss()
        summary = summarise(self._run)
        write_json(self._run.path / "summary.json", summary)
        self.progress.update(phase="starting" if self._is_part else "done", jobs_open=0)
        return summary

    def stop(self) -> None:
        """Ask the run to end at the next step."""
        self._stop.set()

    def _train_teachers(self) -> RunDirectory | None:
        """Where the teachers of this run are, all of them trained; None if its method has none of that kind."""
        if self._setup.method.teacher != "task":
            return None
        teachers = open_teachers(self._setup, self._run)
        if not (teachers.path / "summary.json").is_file():
            self.progress.add_event("training the teachers")
            self.progress.update(part="teachers: ")
            setup = self._setup.of_teachers()
            shared = (self.progress, self._stop, self._mirroring)
            before = Coordinator(setup, self._cluster, teachers, self._hire, self._places, *shared)
            try:
                with self._timeline.span("coordinator", "teachers", "training the teachers"):
                    before.run()
            except StoppedError:
                self._heed_stop()  # in the name of the run that the user knows
                raise
            self.progress.add_event("the teachers are trained")
            self.progress.update(part="")
        return teachers

    def _count_time_of_teachers(self) -> None:
        """The run's time begins with that of teachers trained within it, in this process or before it was resumed."""
        self._began = time.monotonic()
        if self._teachers is not None and self._teachers.path == self._run.teachers() and not self._state.wall_seconds:
            self._state = self._state.model_copy(update={"wall_seconds": self._teachers.state().wall_seconds})

    def _prepare(self) -> None:
        setup, crew = self._setup, self._crew
        self._transport = crew.transport
        self._pool = WorkPool(self._transport, crew.evaluators, self._cluster.timeouts.work, self._timeline)
        self._scoring = Scoring(setup, self._run, self._transport, self._pool, self.progress, self._board)
        self.progress.update(num_stages=len(setup.stages), num_epochs=setup.experiment.training.epochs)
        self._checkpoints = Checkpoints(setup, self._cluster, self._run, crew, self._disk)
        self._training = self._trainer(generation=0)
        self._warn_of_equal_peers()

    def _trainer(self, generation: int) -> Training:
        setup, crew = self._setup, self._crew
        material = Material(
            setup, self._run, self._transport, crew.students, self._pool, self._checkpoints.descriptions, self.progress
        )
        return Training(
            setup,
            self._cluster,
            self._run,
            crew,
            material,
            self._teachers,
            self.progress,
            self._board,
            self._timeline,
            self._between,
            generation,
        )

    def _warn_of_equal_peers(self) -> None:
        """Peers with equal weights, batches and no dropout stay equal, and have nothing to teach each other."""
        # GPT-2 also has dropout in a summary head, which language models do not use.
        settings = [{**own, **own.get(ADAPTERS, {})} for own in self._checkpoints.descriptions.values()]
        dropout = [own[name] for own in settings for name in own if "drop" in name and "summary" not in name]
        experiment = self._setup.experiment
        alike = all(own == experiment.peers.each[0] for own in experiment.peers.each)
        # Those that learn in turn see the examples in orders of their own.
        together = experiment.distillation.schedule == "simultaneous"
        equal = experiment.peers.init == "shared" and together and alike and not any(dropout)
        graph = self._setup.topology
        if any(teacher in graph.students for teacher, _ in graph.edges) and equal:
            self.progress.add_event(
                "warning: the model has no dropout and peers.init is shared: the peers will stay equal"
            )

    def _catch_up(self) -> None:
        """After a resume: weights of the last finished stage, and the scores that were not taken before."""
        done = self._state.stages_done
        if not done:
            return
        self._checkpoints.restore(done, self._setup.topology.students)
        self._scoring.request_missing(done, self._checkpoints.descriptions)
        name = self._setup.stages[done - 1].name
        self.progress.add_event(f"resumed after {name} ({done} of {len(self._setup.stages)} stages)")

    def _learn(self) -> None:
        """Learn the next stage, or several that do not depend on each other; again, if a student is lost on the way.

        Raises PeerLostError if students are lost more often than is worth a try.
        """
        for attempt in range(_MOST_RESTARTS + 1):
            seats = next(groups(self._setup, self._state.stages_done, len(self._crew.students)))
            try:
                self._learn_to_the_end(seats)
                return
            except PeerLostError as error:
                if attempt == _MOST_RESTARTS:
                    raise
                self._begin_again(seats, error)

    def _learn_to_the_end(self, seats: Sequence[Seat]) -> None:
        self._training.begin(seats)
        written: list[tuple[Seat, Future[None]]] = []
        for epoch in range(1, self._setup.experiment.training.epochs + 1):
            self._training.epoch(seats, epoch)
            seats = [seat for seat in seats if seat.worker not in self._training.lost]
            if epoch in self._scoring.epochs:
                written += [(seat, self._checkpoints.keep(seat, epoch, self._scoring)) for seat in seats]
        if self._setup.method.guard != "none":
            what = f"importance of weights after {self._training.where}"
            with self._timeline.span("coordinator", "importance", what):
                self._checkpoints.consolidate(seats)
        for seat, future in written:
            if seat in seats:  # of one that was lost there may be no more to write
                future.result()
        if self._training.lost:
            self._go_on_without(self._training.lost)
        crew = {f"student-{seat.worker}": self._crew.students[seat.worker] for seat in seats}
        self._save_state(max(seat.stage for seat in seats) + 1, self._memory(crew))

    def _begin_again(self, seats: Sequence[Seat], error: PeerLostError) -> None:
        """After a loss: everyone is where the last finished stage left them, the lost ones replaced or done without.

        Raises ``error`` if nobody is lost after all, or everybody.
        """
        left = [place for place in range(len(self._crew.students)) if place not in self._setup.topology.lost]
        lost, _ = absent(self._crew, self._cluster, self._training.generation + 1, left)
        if not lost:
            raise error
        graph = self._setup.topology
        going_on = self._setup.experiment.peers.on_peer_loss == "continue"
        if going_on and graph.without(lost).students and not graph.frozen & lost.keys():
            self._go_on_without(lost)
        else:
            for student in lost:
                self.progress.add_event(f"student {student} is lost and replaced: {lost[student]}")
                hire_anew(self._crew, self._cluster, student)
        for stage in {seat.stage for seat in seats}:
            self._scoring.forget(stage)
        for evaluator in self._crew.evaluators:  # without a peer the same checkpoints become others
            self._transport.submit(evaluator, "forget")
        self._board.restart_stage()
        self._training = self._trainer(self._training.generation + 1)
        self._checkpoints.restore(self._state.stages_done, self._setup.topology.students)
        self._state = self._state.model_copy(update={"restarts": self._state.restarts + 1})
        self.progress.add_event(f"learning again from the end of stage {self._state.stages_done}")

    def _go_on_without(self, lost: Mapping[int, str]) -> None:
        """From the next stage on there are no such students; the report will say so."""
        known = self._state.lost_students | dict(lost)
        self._state = self._state.model_copy(update={"lost_students": known})
        self._setup = replace(self._setup, topology=self._setup.topology.without(known))
        self._training = self._trainer(self._training.generation)

    def _between(self) -> None:
        """Between two steps, and while waiting: scores that are in, and the user's wish to stop."""
        for student in self._training.lost:  # its weights may never come
            self._scoring.forget(self._state.stages_done, student)
        self._pool.poll()
        self.progress.update(jobs_open=len(self._scoring))
        self._heed_stop()

    def _heed_stop(self) -> None:
        if self._stop.is_set():
            raise StoppedError(f"stopped. Go on with it: ray-l4 resume {self._run.path}")

    def _memory(self, workers: Mapping[str, Any]) -> dict[str, int]:
        """Peak memory of workers that have nothing to do: one that is busy would have to be waited for."""
        if self._transport.one_process:
            return {"process": peak_memory_bytes()}
        ranks = {
            name + (f".shard-{shard}" if shard else ""): rank
            for name, worker in workers.items()
            for shard, rank in enumerate(worker if isinstance(worker, tuple) else (worker,))
        }
        asked = {name: self._transport.submit(rank, "peak_memory") for name, rank in ranks.items()}
        return {name: self._transport.get(ref, self._cluster.timeouts.start, name) for name, ref in asked.items()}

    def _save_state(self, stages_done: int, memory: Mapping[str, int]) -> None:
        peaks = dict(self._state.peak_memory_bytes)
        peaks |= {name: max(peak, peaks.get(name, 0)) for name, peak in memory.items()}
        now = time.monotonic()
        wall, self._began = self._state.wall_seconds + now - self._began, now
        done = {"stages_done": stages_done, "wall_seconds": wall, "peak_memory_bytes": peaks}
        self._state = self._state.model_copy(update=done)
        self._timeline.save()
        self._run.save_state(self._state)
        self._mirroring.push()
