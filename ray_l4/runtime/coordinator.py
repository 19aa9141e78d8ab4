"""Drives a run from task to task: replay, training, checkpoints, scores. It alone writes the run directory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import RayL4Error
from ray_l4.exchange.loop import StepFigures, train_steps
from ray_l4.report.summary import summarise
from ray_l4.runtime.board import Board
from ray_l4.runtime.crew import Workers
from ray_l4.runtime.pool import WorkPool
from ray_l4.runtime.progress import Progress, StudentProgress
from ray_l4.runtime.replay import ReplayPlan, collect_replay
from ray_l4.runtime.scoring import Scoring
from ray_l4.runtime.setup import Setup
from ray_l4.store.atomic import write_json
from ray_l4.store.records import read_weights, write_checkpoint, write_steps
from ray_l4.store.run_directory import RunDirectory, RunState
from ray_l4.text.tokens import pooled


class StoppedError(RayL4Error):
    """The user asked the run to stop."""

    exit_code = 130


class Coordinator:
    """One run. ``run()`` does it all; ``progress`` and ``stop()`` may be used from other threads."""

    def __init__(
        self, setup: Setup, cluster: ClusterConfig, run: RunDirectory, hire: Callable[[Setup, ClusterConfig], Workers]
    ) -> None:
        """``hire`` makes the students and evaluators; it is called when the run begins."""
        self.progress = Progress()
        self._setup = setup
        self._cluster = cluster
        self._run = run
        self._hire = hire
        self._stop = threading.Event()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self._state = run.state()
        self._generation = self._state.stages_done
        done = {(row["stage"], row["step"]) for row in run.step_figures() if row["stage"] < self._state.stages_done}
        self._board = Board(run.path / "tensorboard", steps_before=len(done))

    def run(self) -> dict[str, Any]:
        """Learn the stages that are not done, wait for every score, and give the summary.

        Raises ClusterError, ModelError or PeerError if the workers cannot start, PeerError if one fails later,
        StoppedError if asked to; what is on disk stays valid in any case.
        """
        self._began = time.monotonic()
        self._crew = self._hire(self._setup, self._cluster)
        self._transport = self._crew.transport
        self._pool = WorkPool(self._transport, self._crew.evaluators, self._cluster.timeouts.work)
        self._scoring = Scoring(self._setup, self._run, self._transport, self._pool, self.progress, self._board)
        self.progress.set(num_stages=len(self._setup.tasks), num_epochs=self._setup.experiment.training.epochs)
        self.progress.set(students=[StudentProgress() for _ in self._crew.students])
        self._description = self._call(0, "describe")
        self._warn_of_equal_peers()
        try:
            self._catch_up()
            for stage in range(self._state.stages_done, len(self._setup.tasks)):
                self._learn(stage)
            self.progress.set(phase="scoring")
            self._pool.wait(lambda: not len(self._pool), self._between)
            self._save_state(len(self._setup.tasks), self._memory("evaluator", self._crew.evaluators))
        finally:
            self._disk.shutdown(wait=True)
            self._board.close()
        summary = summarise(self._run)
        write_json(self._run.path / "summary.json", summary)
        self.progress.set(phase="done")
        return summary

    def stop(self) -> None:
        """Ask the run to end at the next step."""
        self._stop.set()

    def _warn_of_equal_peers(self) -> None:
        """Peers with equal weights, batches and no dropout stay equal, and have nothing to teach each other."""
        # GPT-2 also has dropout in a summary head, which language models do not use.
        names = [name for name in self._description if ("pdrop" in name or "dropout" in name) and "summary" not in name]
        dropout = [self._description[name] for name in names]
        equal = self._setup.experiment.peers.init == "shared" and not any(dropout)
        if self._setup.topology.edges and equal:
            self.progress.event("warning: the model has no dropout and peers.init is shared: the peers will stay equal")

    def _catch_up(self) -> None:
        """After a resume: weights of the last finished stage, and the scores that were not taken before."""
        done = self._state.stages_done
        if not done:
            return
        for peer in range(len(self._crew.students)):
            epochs = self._setup.experiment.training.epochs
            self._call(peer, "load", read_weights(self._run.checkpoint(done - 1, epochs, peer)))
        self._scoring.request_missing(done, len(self._crew.students), self._description)
        self.progress.event(f"resumed after {self._setup.tasks[done - 1]} ({done} of {len(self._setup.tasks)} tasks)")

    def _learn(self, stage: int) -> None:
        task = self._setup.tasks[stage]
        self.progress.set(stage=stage, task=task, epoch=0, step=0, num_steps=0, phase="replay")
        tokens = self._tokens(stage)
        self._generation += 1
        table = self._transport.put(tokens)
        began = [
            self._transport.submit(student, "begin", self._generation, stage, table) for student in self._crew.students
        ]
        ends = [self._transport.get(ref, self._cluster.timeouts.start, f"student {i}") for i, ref in enumerate(began)]
        epoch_ends: list[int] = ends[0]
        self._expect_steps(stage, epoch_ends[-1] + 1)
        self.progress.event(f"learning {task} from {tokens.num_rows} examples in {epoch_ends[-1] + 1} steps")
        self.progress.set(phase="training", num_steps=epoch_ends[-1] + 1)
        written: list[Future[None]] = []
        first = 0
        for epoch, last in enumerate(epoch_ends, start=1):
            self._train_epoch(stage, epoch, range(first, last + 1))
            first = last + 1
            if epoch in self._scoring.epochs:
                written += self._checkpoint(stage, epoch)
        for future in written:
            future.result()
        self._save_state(stage + 1, self._memory("student", self._crew.students))

    def _tokens(self, stage: int) -> pa.Table:
        """The stage's training table: the task's examples, and replayed ones of the tasks before."""
        current = self._setup.training[self._setup.tasks[stage]]
        plan = ReplayPlan.of(self._setup, stage)
        if not plan.gens:
            return current
        weights = self._transport.submit(self._crew.students[0], "weights")
        description = self._transport.put(self._description)
        replayed = collect_replay(self._run, self._setup, plan, self._pool, (description, weights), self._between)
        dropped = len(plan.gens) - replayed.num_rows
        self.progress.event(f"replay: {replayed.num_rows} pseudo-examples, {dropped} dropped")
        return pooled(current, replayed)

    def _train_epoch(self, stage: int, epoch: int, steps: range) -> None:
        self.progress.set(epoch=epoch)
        rows: list[dict[str, float]] = []
        mark = time.monotonic()

        def on_step(step: int, figures: StepFigures) -> None:
            nonlocal mark
            now = time.monotonic()
            self.progress.step(step, figures, now - mark)
            mark = now
            for student, values in enumerate(figures):
                rows.append({"stage": stage, "epoch": epoch, "step": step, "student": student, **values})
            self._board.step(figures)
            self._pool.poll()
            self._between()

        train_steps(
            self._transport,
            self._crew.students,
            self._setup.topology,
            self._generation,
            steps,
            steps_ahead=self._cluster.exchange.steps_ahead,
            timeout=self._cluster.timeouts.step,
            where=f"stage {stage} ({self._setup.tasks[stage]})",
            on_step=on_step,
        )
        write_steps(self._run, stage, epoch, rows)

    def _checkpoint(self, stage: int, epoch: int) -> list[Future[None]]:
        """Write every student's weights, on another thread, and have them scored on every task."""
        writes = []
        for peer, student in enumerate(self._crew.students):
            weights = self._transport.submit(student, "weights")
            folder = self._run.checkpoint(stage, epoch, peer)
            writes.append(self._disk.submit(self._write_weights, folder, weights, f"student {peer}, checkpoint"))
            self._scoring.request(stage, epoch, peer, weights, self._description)
        return writes

    def _write_weights(self, folder: Path, weights: Any, what: str) -> None:
        array = self._transport.get(weights, self._cluster.timeouts.step, what)
        write_checkpoint(folder, array, self._description, self._run.path / "tokenizer")

    def _between(self) -> None:
        self.progress.set(jobs_open=len(self._pool))
        if self._stop.is_set():
            raise StoppedError(f"stopped. Go on with it: ray-l4 resume {self._run.path}")

    def _expect_steps(self, stage: int, steps: int) -> None:
        """Estimate the steps of the whole run from the stage at hand and the sizes of those to come."""
        now = self.progress.look()
        current = self._setup.training[self._setup.tasks[stage]].num_rows
        later = sum(self._setup.training[task].num_rows for task in self._setup.tasks[stage + 1 :])
        self.progress.set(steps_total=now.steps_done + steps + round(steps * later / current))

    def _memory(self, kind: str, workers: Sequence[Any]) -> dict[str, int]:
        """Peak memory of workers that have nothing to do: one that is busy would have to be waited for."""
        asked = {f"{kind}-{i}": self._transport.submit(worker, "peak_memory") for i, worker in enumerate(workers)}
        return {name: self._transport.get(ref, self._cluster.timeouts.start, name) for name, ref in asked.items()}

    def _save_state(self, stages_done: int, memory: Mapping[str, int]) -> None:
        peaks = dict(self._state.peak_memory_bytes)
        peaks |= {name: max(peak, peaks.get(name, 0)) for name, peak in memory.items()}
        now = time.monotonic()
        wall, self._began = self._state.wall_seconds + now - self._began, now
        self._state = RunState(stages_done=stages_done, wall_seconds=wall, peak_memory_bytes=peaks)
        self._run.save_state(self._state)

    def _call(self, peer: int, method: str, *arguments: Any) -> Any:
        reference = self._transport.submit(self._crew.students[peer], method, *arguments)
        return self._transport.get(reference, self._cluster.timeouts.start, f"student {peer}, {method}")
