"""What students leave on disk, and how they come back to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_l4.cluster.spawn import Workers
from ray_l4.config.cluster import ClusterConfig
from ray_l4.run.scoring import Scoring
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import Seat
from ray_l4.store.records import read_guard, read_weights, write_checkpoint, write_guard
from ray_l4.store.run_directory import RunDirectory


class Checkpoints:
    """Keeps students' weights, and what their guards know, in the run directory; files are written on a thread."""

    def __init__(
        self, setup: Setup, cluster: ClusterConfig, run: RunDirectory, crew: Workers, disk: ThreadPoolExecutor
    ) -> None:
        self._setup = setup
        self._cluster = cluster
        self._run = run
        self._crew = crew
        self._disk = disk
        asked = {student: crew.submit(student, "describe") for student in setup.topology.students}
        self.descriptions: Mapping[int, Mapping[str, Any]] = {
            student: crew.transport.get(reference, cluster.timeouts.start, f"student {student}, describe")
            for student, reference in asked.items()
        }
        """Student -> its model's configuration."""

    def keep(self, seat: Seat, epoch: int, scoring: Scoring) -> Future[None]:
        """Write a student's weights as they are now, and have them scored."""
        weights = self._crew.submit(seat.worker, "weights")
        folder = self._run.checkpoint(seat.stage, epoch, seat.student)
        scoring.request(seat.stage, epoch, seat.student, weights, self.descriptions[seat.student])
        return self._disk.submit(self._write, folder, weights, seat.student)

    def _write(self, folder: Path, weights: Any, student: int) -> None:
        array = self._crew.transport.get(weights, self._cluster.timeouts.step, f"student {student}, checkpoint")
        write_checkpoint(folder, array, self.descriptions[student], self._run.path / "tokenizer")

    def consolidate(self, seats: Sequence[Seat]) -> None:
        """Let the students' guards take note of the stage; what they know is kept for a resume."""
        asked = [(seat, self._crew.submit(seat.worker, "consolidate")) for seat in seats]
        for seat, reference in asked:
            what = f"student {seat.student}, importance of weights"
            known = self._crew.transport.get(reference, self._cluster.timeouts.work, what)
            if known is not None:
                write_guard(self._run, seat.stage, seat.student, known)

    def restore(self, done: int, students: Sequence[int]) -> None:
        """Bring students to where the first ``done`` stages left them; independent models begin anew anyway."""
        epochs = self._setup.experiment.training.epochs
        for student in students if self._setup.method.stages != "separate" else ():
            if not done:
                self._call(student, "reset")
                continue
            self._call(student, "load", read_weights(self._run.checkpoint(done - 1, epochs, student)))
            if self._run.guard(done - 1, student).is_file():
                self._call(student, "restore_guard", read_guard(self._run, done - 1, student))

    def _call(self, student: int, method: str, *arguments: Any) -> Any:
        reference = self._crew.submit(student, method, *arguments)
        return self._crew.transport.get(reference, self._cluster.timeouts.start, f"student {student}, {method}")
