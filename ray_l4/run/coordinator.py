"""Drives a run from its first stage to its summary. No other process writes the run directory during a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from ray_l4.cluster.membership import Membership
from ray_l4.cluster.spawn import Spawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.monitor.curves import Curves
from ray_l4.monitor.progress import Progress
from ray_l4.monitor.timeline import Timeline
from ray_l4.monitor.trackers import TRACKERS, TrackedRun
from ray_l4.monitor.tracking import QueuedWriter
from ray_l4.report.summary import summarise
from ray_l4.run.context import RunContext, StoppedError
from ray_l4.run.going_back import go_back_if_damaged, whole_part
from ray_l4.run.mirroring import Mirroring
from ray_l4.run.run_log import logging_to
from ray_l4.run.stage_loop import StageLoop
from ray_l4.run.state_keeper import StateKeeper
from ray_l4.run.teachers import open_teachers
from ray_l4.setup.peer_teachers import finished_peers
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import StagePlan
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.sealed import write_record
from ray_l4.store.states import newest_step

MakeSpawner = Callable[[Setup, ClusterConfig, Sequence[int], Collection[int]], Spawner]
"""Builds the spawner of a run from its setup, its profile, the peer of each slot, and the slots of lost students."""

log = logging.getLogger("ray_l4.coordinator")


class Coordinator:
    """One run. Call ``run()`` once; ``progress`` and ``stop()`` may be used from other threads."""

    def __init__(
        self, context: RunContext, make_spawner: MakeSpawner, most_slots: int, *, is_part: bool = False
    ) -> None:
        """``most_slots``: number of student workers for which the cluster has room.

        ``is_part``: whether this run trains teachers for another one, with which it shares progress and storage.
        """
        self._context = context
        self._make_spawner = make_spawner
        self._most_slots = most_slots
        self._is_part = is_part

    @property
    def progress(self) -> Progress:
        """The progress of the run so far."""
        return self._context.progress

    def stop(self) -> None:
        """Ask the run to end at the next step."""
        self._context.stop.set()

    def run(self) -> dict[str, Any]:
        """Learn the remaining stages, wait for all scores, and return the summary.

        Raises ClusterError, ModelError or PeerError if the workers cannot start, PeerError if one fails later,
        StoppedError if asked to stop. The files on disk stay valid in any case.
        """
        context = self._context
        with logging_to(context.directory):
            try:
                log.info("run %s: %s", context.directory.path, context.setup.method.name)
                self._run()
            except StoppedError as error:
                log.info("%s", error)
                raise
            except BaseException as error:
                log.error("the run ended early: %s", error, exc_info=error)
                raise
            finally:
                context.curves.close()
                context.timeline.save()
                if not self._is_part:
                    context.mirroring.finish()
        summary = summarise(context.directory)
        write_record(context.directory.path / "summary.json", summary)
        context.progress.update(phase="starting" if self._is_part else "done", jobs_open=0)
        return summary

    def _run(self) -> None:
        context, setup = self._context, self._context.setup
        teachers, teacher_seconds = self._train_teachers()
        state = StateKeeper(context, teacher_seconds)
        plan = StagePlan.of(setup, self._most_slots)
        lost = context.directory.state().lost_students
        spawner = self._make_spawner(setup, context.cluster, plan.peers, lost)
        membership = Membership(spawner, context.cluster, setup.topology, lost)
        evaluators = None if self._begins_with_training() else spawner.evaluators()
        membership.await_start()
        if evaluators is None:  # they load their libraries while the students learn
            evaluators = spawner.evaluators()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk") as disk:
            loop = StageLoop(context, state, plan, spawner, membership, evaluators, teachers, disk)
            try:
                loop.run()
            finally:
                loop.fetch_logs()
        membership.end()
        evaluators.end()

    def _begins_with_training(self) -> bool:
        """Return whether students learn at once; otherwise evaluators may have to generate replay first."""
        run = self._context.directory
        stages_done = run.state().stages_done
        return stages_done == 0 or newest_step(run, stages_done) > 0

    def _train_teachers(self) -> tuple[RunDirectory | None, float]:
        """Train the task teachers if they are not trained yet.

        Returns the run of the teachers, or None if the method has none; and the wall time of their training in seconds,
        or 0 if they were not trained for this run.
        """
        context = self._context
        if not context.setup.method.has_task_teachers:
            return finished_peers(context.setup.experiment), 0.0
        teachers, setup = open_teachers(context.setup, context.directory), context.setup.of_teachers()
        own = teachers.path == context.directory.teachers()
        is_done = (teachers.path / "summary.json").is_file()
        if not is_done or (own and whole_part(teachers, setup.experiment).damage is not None):
            context.progress.add_event("training the teachers")
            context.progress.update(part="teachers: ")
            part = _part_of(context, setup, teachers)
            try:
                with context.timeline.span("coordinator", "teachers", "training the teachers"):
                    Coordinator(part, self._make_spawner, self._most_slots, is_part=True).run()
            except StoppedError:
                context.heed_stop()  # the message should name this run, not that of the teachers
                raise
            context.progress.add_event("the teachers are trained")
            context.progress.update(part="")
        return teachers, teachers.state().wall_seconds if own else 0.0


def new_context(setup: Setup, cluster: ClusterConfig, directory: RunDirectory) -> RunContext:
    """Build the context of a run, with all its outputs open."""
    progress = Progress()
    go_back_if_damaged(directory, setup, progress.add_event)
    return RunContext(
        setup=setup,
        cluster=cluster,
        directory=directory,
        progress=progress,
        curves=_curves(directory, _tracker(directory, setup, cluster, progress), progress.warn),
        timeline=Timeline(directory, progress.warn),
        mirroring=Mirroring(directory, cluster, progress.add_event),
        stop=threading.Event(),
    )


def _part_of(whole: RunContext, setup: Setup, directory: RunDirectory) -> RunContext:
    """Return the context of a part of a run, which has a run directory of its own."""
    go_back_if_damaged(directory, setup, whole.progress.add_event)
    prefix = f"{whole.directory.path.resolve().name}/"
    tracker = _tracker(directory, setup, whole.cluster, whole.progress, prefix)
    curves = _curves(directory, tracker, whole.progress.warn)
    return replace(
        whole, setup=setup, directory=directory, curves=curves, timeline=Timeline(directory, whole.progress.warn)
    )


def _tracker(
    directory: RunDirectory, setup: Setup, cluster: ClusterConfig, progress: Progress, prefix: str = ""
) -> QueuedWriter | None:
    """Open the run's tracker, if it has one. ``prefix``: the part of its name that says which run it is a part of."""
    if cluster.track is None:
        return None
    path, experiment = directory.path.resolve(), setup.experiment
    run = TrackedRun(f"{prefix}{path.name}", experiment.name, experiment.model_dump(mode="json"), path)
    return QueuedWriter(cluster.track, partial(TRACKERS[cluster.track], run), progress.add_event)


def _curves(directory: RunDirectory, tracker: QueuedWriter | None, tell: Callable[[str], None]) -> Curves:
    done = directory.state().stages_done
    kept = newest_step(directory, done)
    return Curves(directory.path / "tensorboard", directory.num_steps(done, tell), tracker, steps_kept=kept)
