"""What a stage learns from: the task's examples, with whoever's answers, and examples of the tasks before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_l4.cluster.rpc import Transport
from ray_l4.monitor.progress import Progress
from ray_l4.run.generated_replay import ReplayPlan, collect_replay
from ray_l4.run.stored_replay import record_stored, reservoir, stored_replay
from ray_l4.run.teachers import distilled
from ray_l4.run.work_queue import WorkPool
from ray_l4.setup.setup import Setup
from ray_l4.store.records import CONFIG
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.text.tokens import pooled


@dataclass(frozen=True)
class Given:
    """What one student is given for a stage."""

    tokens: Any
    """Reference to the table it learns from."""
    num_examples: int
    memory: Any
    """Reference to stored examples that guard its gradients, or None."""


class Material:
    """Collects what a run's stages learn from."""

    def __init__(
        self,
        setup: Setup,
        run: RunDirectory,
        transport: Transport,
        students: Sequence[Any],
        pool: WorkPool,
        descriptions: Mapping[int, Mapping[str, Any]],
        progress: Progress,
    ) -> None:
        """``descriptions``: student -> its model's configuration."""
        self._setup = setup
        self._run = run
        self._transport = transport
        self._students = students
        self._pool = pool
        self._descriptions = descriptions
        self._progress = progress

    def of(self, stage: int, teachers: RunDirectory | None, on_nap: Callable[[], None]) -> dict[int, Given]:
        """Student -> what it is given for the stage."""
        current = self._current(stage, teachers, on_nap)
        replay = self._replay(stage, on_nap)
        kept = reservoir(self._setup, stage) if self._setup.method.guard == "memory" and stage else None
        memory = None if kept is None else self._transport.put(kept)
        given: dict[int, Given] = {}
        shared: dict[int, Given] = {}  # by identity of the replay: students that share it share the whole table
        for student in self._setup.topology.students:
            own = replay.get(student)
            if id(own) not in shared:
                tokens = current if own is None else pooled(current, own)
                shared[id(own)] = Given(self._transport.put(tokens), tokens.num_rows, memory)
            given[student] = shared[id(own)]
        return given

    def _current(self, stage: int, teachers: RunDirectory | None, on_nap: Callable[[], None]) -> pa.Table:
        tasks = self._setup.stages[stage].tasks
        if self._setup.method.answers == "given" or teachers is None:
            tables: Mapping[str, pa.Table] = self._setup.training
        else:
            description = described(teachers.checkpoint(0, teachers.experiment().training.epochs, 0))
            tables = distilled(
                self._run, self._setup, teachers, tasks, self._transport, self._pool, description, on_nap
            )
        return pooled(*(tables[task] for task in tasks))

    def _replay(self, stage: int, on_nap: Callable[[], None]) -> dict[int, pa.Table]:
        """Student -> examples of earlier tasks; nobody, if there are none."""
        if self._setup.method.replay == "stored":
            table = stored_replay(self._setup, stage)
            if table is None:
                return {}
            record_stored(self._run, self._setup, stage, table)
            self._progress.add_event(f"replay: {table.num_rows} stored examples")
            return dict.fromkeys(self._setup.topology.students, table)
        plan = ReplayPlan.of(self._setup, stage)
        if not plan.gens:
            return {}
        models = {
            student: (
                self._transport.put(self._descriptions[student]),
                self._transport.submit(self._students[student], "weights"),
            )
            for student in plan.generators
        }
        replayed = collect_replay(self._run, self._setup, plan, self._pool, models, on_nap)
        kept = sum({id(table): table.num_rows for table in replayed.values()}.values())
        self._progress.add_event(f"replay: {kept} pseudo-examples, {len(plan.gens) - kept} dropped")
        return replayed


def described(checkpoint: Path) -> dict[str, Any]:
    """The configuration of a checkpoint's model; nothing where it holds adapters: the experiment names their base."""
    path = checkpoint / CONFIG
    return read_json(path) if path.is_file() else {}
