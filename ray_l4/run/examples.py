"""The examples of a stage: those of its task, with given or teachers' answers, and replayed ones of earlier tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from ray_l4.cluster.handles import ModelRef
from ray_l4.cluster.membership import Membership
from ray_l4.cluster.rpc import Ref, Rpc
from ray_l4.run.checkpoints import Checkpoints
from ray_l4.run.context import RunContext
from ray_l4.run.generated_replay import PseudoExamples, collect_replay
from ray_l4.run.peer_teachers import recorded_replay
from ray_l4.run.stored_replay import record_stored, reservoir, stored_replay
from ray_l4.run.teachers import distilled
from ray_l4.run.work_queue import WorkQueue
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.tokens import concatenated


@dataclass(frozen=True)
class StudentExamples:
    """The examples that one student gets for a stage."""

    tokens: Ref[pa.Table]
    """The training examples."""
    num_examples: int
    memory: Ref[pa.Table] | None
    """Stored examples that a guard looks at (A-GEM, DER++)."""


class StageExamples:
    """Collects the examples of each stage of a run."""

    def __init__(
        self,
        context: RunContext,
        rpc: Rpc,
        membership: Membership,
        queue: WorkQueue,
        checkpoints: Checkpoints,
        teachers: RunDirectory | None,
    ) -> None:
        """``checkpoints`` knows the students' configurations. ``teachers``: run whose checkpoints teach, if any."""
        self._context = context
        self._setup = context.setup
        self._rpc = rpc
        self._membership = membership
        self._queue = queue
        self._checkpoints = checkpoints
        self._teachers = teachers

    def of(self, stage: int, on_nap: Callable[[], None]) -> dict[int, StudentExamples]:
        """Return student -> its examples for a stage. ``on_nap`` is called while evaluators generate them."""
        current = self._current(stage, on_nap)
        replay = self._replay(stage, on_nap)
        kept = reservoir(self._setup, stage) if self._setup.method.guard_remembers and stage else None
        memory = None if kept is None else self._rpc.put(kept)
        given: dict[int, StudentExamples] = {}
        shared: dict[int, StudentExamples] = {}  # by the identity of the replay: students that share it share the table
        for student in self._membership.topology.students:
            own = replay.get(student)
            if id(own) not in shared:
                tokens = current if own is None else concatenated(current, own)
                shared[id(own)] = StudentExamples(self._rpc.put(tokens), tokens.num_rows, memory)
            given[student] = shared[id(own)]
        return given

    def _current(self, stage: int, on_nap: Callable[[], None]) -> pa.Table:
        items, teachers = self._setup.stages[stage].items, self._teachers
        tables: Mapping[str, pa.Table] = self._setup.training
        if self._setup.method.answers == "teacher" and teachers is not None:
            tables = distilled(self._context, teachers, items, self._rpc, self._queue, on_nap)
        return concatenated(*(tables[item] for item in items))

    def _replay(self, stage: int, on_nap: Callable[[], None]) -> dict[int, pa.Table]:
        """Return student -> its examples of earlier tasks; empty if there are none."""
        students = self._membership.topology.students
        if self._setup.method.replay == "stored":
            table = stored_replay(self._setup, stage)
            if table is None:
                return {}
            record_stored(self._context.directory, self._setup, stage, table)
            self._context.progress.add_event(f"replay: {table.num_rows} stored examples")
            return dict.fromkeys(students, table)
        if self._setup.method.replay == "recorded" and self._teachers is not None:
            recorded = recorded_replay(self._context, self._teachers, stage)
            return {} if recorded is None else dict.fromkeys(students, recorded)
        wanted = PseudoExamples.of(self._setup, stage, students)
        if not wanted.gens:
            return {}

        def model_of(student: int) -> ModelRef:
            return ModelRef(
                f"replay-{stage}.student-{student}",
                self._rpc.put(self._checkpoints.descriptions[student]),
                self._membership.students[student].await_weights(self._context.cluster.timeouts.start),
            )

        replayed = collect_replay(self._context, wanted, students, self._queue, model_of, on_nap)
        kept = sum({id(table): table.num_rows for table in replayed.values()}.values())
        self._context.progress.add_event(f"replay: {kept} pseudo-examples, {len(wanted.gens) - kept} dropped")
        return replayed
