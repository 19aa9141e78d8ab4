"""The training of a stage: everyone takes a seat, and epoch after epoch goes through the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_l4.cluster.spawn import Workers, absent, meet
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import PeerLostError
from ray_l4.monitor.progress import Progress, StudentProgress
from ray_l4.monitor.tensorboard import TensorBoardLog
from ray_l4.monitor.timeline import Timeline
from ray_l4.run.examples import Material
from ray_l4.run.step_loop import StepFigures, train_steps
from ray_l4.run.teachers import teacher_weights
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import Seat, levelled, passes
from ray_l4.store.records import write_steps
from ray_l4.store.run_directory import RunDirectory


class Training:
    """Trains one stage at a time, or several that do not depend on each other; its caller keeps the checkpoints."""

    def __init__(
        self,
        setup: Setup,
        cluster: ClusterConfig,
        run: RunDirectory,
        crew: Workers,
        material: Material,
        teachers: RunDirectory | None,
        progress: Progress,
        board: TensorBoardLog,
        timeline: Timeline,
        between: Callable[[], None],
        generation: int = 0,
    ) -> None:
        """``teachers``: the run whose checkpoints teach, if any. ``between``: called after every step, and in waits.
        ``generation``: the newest that students have served."""
        self._setup = setup
        self._cluster = cluster
        self._run = run
        self._crew = crew
        self._transport = crew.transport
        self._material = material
        self._teachers = teachers
        self._progress = progress
        self._board = board
        self._timeline = timeline
        self._between = between
        self._generation = generation
        self.lost: dict[int, str] = {}
        """Students that were lost and are done without, and how each was lost."""

    @property
    def generation(self) -> int:
        """What students serve now; a call of an older one is refused."""
        return self._generation

    def begin(self, seats: Sequence[Seat]) -> None:
        """Have every worker enter its stage with its examples, and those that only teach with their weights."""
        stages = sorted({seat.stage for seat in seats})
        self.where = " and ".join(self._setup.stages[stage].name for stage in stages)
        self._progress.update(stage=stages[0], task=self.where, epoch=0, step=0, num_steps=0, phase="replay")
        self._progress.update(students=[StudentProgress() for _ in seats])
        for seat in seats if self._setup.method.stages == "separate" else ():
            self._call(seat.worker, "reset")
        with self._timeline.span("coordinator", "replay", f"examples for {self.where}"):
            given = {stage: self._material.of(stage, self._teachers, self._between) for stage in stages}
        self._topology = self._setup.topology_of(stages[0])
        examples = {seat.worker: (seat.stage, given[seat.stage][seat.student]) for seat in seats}
        for peer in self._topology.frozen:
            examples[peer] = examples[seats[0].worker]
            self._load_teacher(peer, stages[0])
        self._generation += 1
        if self._topology.edges:
            self._meet()
        began = {
            worker: self._submit(worker, "begin", self._generation, stage, given.tokens, given.memory)
            for worker, (stage, given) in examples.items()
        }
        timeout = self._cluster.timeouts.start
        ends = {worker: self._transport.get(ref, timeout, f"student {worker}") for worker, ref in began.items()}
        self._last_steps = {seat.worker: ends[seat.worker] for seat in seats}
        steps_of = {seat.stage: self._last_steps[seat.worker][-1] + 1 for seat in seats}
        self._board.begin_stage(sum(steps_of.values()))
        num_steps = max(steps_of.values())
        in_turn = self._setup.experiment.distillation.schedule == "alternate_epochs"
        self._expect_steps(stages, num_steps * (len(seats) if in_turn else 1))
        counts = " and ".join(str(own.num_examples) for own in {s: examples[s.worker][1] for s in seats}.values())
        self._progress.add_event(f"learning {self.where} from {counts} examples in {num_steps} steps")
        self._progress.update(phase="training", num_steps=num_steps)

    def epoch(self, seats: Sequence[Seat], epoch: int) -> None:
        """Train one epoch (counted from 1) and write the figures of its steps.

        A student that is lost is done without from then on (``lost``), if the experiment says so. Raises PeerLostError
        otherwise, PeerError if one fails.
        """
        self._progress.update(epoch=epoch)
        began = time.monotonic()
        rows: dict[int, list[dict[str, float]]] = {seat.stage: [] for seat in seats}
        on_step = self._on_step(seats, epoch, rows)
        for together in passes(seats, self._steps_of(epoch), self._setup.experiment.distillation.schedule):
            self._pass(together, on_step)
        for stage, own in rows.items():
            write_steps(self._run, stage, epoch, own)
        for seat in seats:
            label = f"{self._setup.stages[seat.stage].name}, epoch {epoch}"
            self._timeline.add(f"student {seat.worker}", "training", label, time.monotonic() - began)

    def _pass(self, together: Mapping[int, range], on_step: Callable[[int, StepFigures], None]) -> None:
        """Train over these steps, with whoever is left."""
        ends = {worker: steps.stop for worker, steps in together.items() if worker not in self.lost}
        going = [{worker: together[worker] for worker in ends}] if ends else []
        while going:
            try:
                train_steps(
                    self._transport,
                    self._crew.students,
                    self._topology,
                    self._generation,
                    going[0],
                    steps_ahead=self._cluster.exchange.steps_ahead,
                    timeout=self._cluster.timeouts.step,
                    where=self.where,
                    on_step=on_step,
                )
                going.pop(0)
            except PeerLostError as error:
                if self._setup.experiment.peers.on_peer_loss != "continue":
                    raise
                going = self._go_on_without_lost(ends, error)

    def _go_on_without_lost(self, ends: Mapping[int, int], error: PeerLostError) -> list[dict[int, range]]:
        """The steps that are left for those who are; raises ``error`` if they cannot go on by themselves.

        Their teachers' mean is over those that are left. Figures of steps that were under way are not on record.
        """
        self._generation += 1
        lost, at = absent(self._crew, self._cluster, self._generation, self._left())
        if not lost or self._topology.frozen & lost.keys() or not at:
            raise error
        self.lost |= lost
        self._topology = self._topology.without(lost)
        for worker in lost:
            self._transport.end(self._crew.students[worker])
            self._progress.add_event(f"student {worker} is lost, the others go on without it: {lost[worker]}")
        self._meet()
        left = {worker: end for worker, end in ends.items() if worker in at}
        return levelled(at, left) if left else []

    def _meet(self) -> None:
        meet(self._crew, self._cluster, self._generation, self._left())

    def _left(self) -> list[int]:
        """The workers that are not lost."""
        return [place for place in range(len(self._crew.students)) if place not in self._topology.lost]

    def _steps_of(self, epoch: int) -> dict[int, range]:
        """Worker -> its steps of the epoch."""
        return {
            worker: range(0 if epoch == 1 else last[epoch - 2] + 1, last[epoch - 1] + 1)
            for worker, last in self._last_steps.items()
        }

    def _on_step(
        self, seats: Sequence[Seat], epoch: int, rows: Mapping[int, list[dict[str, float]]]
    ) -> Callable[[int, StepFigures], None]:
        """What to do with the figures of a step: show them, and keep them in ``rows`` by stage."""
        seat_of = {seat.worker: (index, seat) for index, seat in enumerate(seats)}
        mark = time.monotonic()

        def on_step(step: int, figures: StepFigures) -> None:
            nonlocal mark
            now = time.monotonic()
            self._progress.record_step(step, {seat_of[worker][0]: own for worker, own in figures.items()}, now - mark)
            mark = now
            for worker, values in figures.items():
                _, seat = seat_of[worker]
                place = {"stage": seat.stage, "epoch": epoch, "step": step, "student": seat.student}
                rows[seat.stage].append({**place, **values})
            self._board.log_step(step, {self._curve(seat_of[worker][1]): values for worker, values in figures.items()})
            self._between()

        return on_step

    def _curve(self, seat: Seat) -> str:
        """What a learner's curves are called: models that are trained independently, side by side, are not one."""
        independent = self._setup.method.stages == "separate"
        return self._setup.stages[seat.stage].name if independent else f"student-{seat.student}"

    def _load_teacher(self, peer: int, stage: int) -> None:
        """Give a peer that only teaches the weights it teaches ``stage`` with."""
        if self._teachers is not None:
            weights = self._transport.put(teacher_weights(self._teachers, stage))
        else:
            weights = self._submit(self._setup.topology.students[0], "weights")
        self._call(peer, "load", weights)

    def _expect_steps(self, stages: Sequence[int], steps: int) -> None:
        """Estimate the steps of the whole run from the stages at hand and the sizes of those to come."""
        now = self._progress.snapshot()
        current = max(self._setup.num_examples(stage) for stage in stages)
        later = sum(self._setup.num_examples(stage) for stage in range(max(stages) + 1, len(self._setup.stages)))
        self._progress.update(steps_total=now.steps_done + steps + round(steps * later / current / len(stages)))

    def _submit(self, worker: int, method: str, *arguments: Any) -> Any:
        return self._transport.submit(self._crew.students[worker], method, *arguments)

    def _call(self, worker: int, method: str, *arguments: Any) -> Any:
        reference = self._submit(worker, method, *arguments)
        return self._transport.get(reference, self._cluster.timeouts.start, f"student {worker}, {method}")
