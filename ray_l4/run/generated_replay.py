"""Replay for a stage: what to generate, sharding it over the evaluators, and keeping what is valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_l4.learner.decoding import in_chunks
from ray_l4.run.work_queue import Job, WorkPool
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.store.records import write_replay
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.replay import GeneratedSample, generated_table, parse_generated, replay_counts

Models = Mapping[int, tuple[Any, Any]]
"""Student -> references to what describes its model, and to its weights."""


@dataclass(frozen=True)
class ReplayPlan:
    """Pseudo-examples of a stage: sample i is made by ``students[i]``, begins with ``gens[i]`` and draws from
    ``seeds[i]``, wherever that happens."""

    stage: int
    students: tuple[int, ...]
    tasks: tuple[str, ...]
    """Of every sample."""
    gens: tuple[int, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, setup: Setup, stage: int) -> ReplayPlan:
        """Equal numbers for every earlier task, in the order of the stream (REFERENCE.md#replay), from whoever generates."""
        if setup.method.replay != "generated" or stage == 0:
            return cls(stage, (), (), (), ())
        per_task = replay_counts(setup.experiment.replay.ratio, setup.num_examples(stage), stage)
        tasks = [task for task in setup.tasks[:stage] for _ in range(per_task)]
        students = setup.topology.students
        rows = {
            "first": [(students[0], index) for index in range(len(tasks))],
            "own": [(student, index) for student in students for index in range(len(tasks))],
            "pool": [(students[index % len(students)], index) for index in range(len(tasks))],
        }[setup.experiment.replay.generator]
        return cls(
            stage,
            students=tuple(student for student, _ in rows),
            tasks=tuple(tasks[index] for _, index in rows),
            gens=tuple(setup.tokenizer.gen[tasks[index]] for _, index in rows),
            seeds=tuple(_seed(setup.experiment.seed, stage, student, index) for student, index in rows),
        )

    @property
    def generators(self) -> list[int]:
        """The students that generate something, in ascending order."""
        return sorted(set(self.students))


def _seed(run_seed: int, stage: int, student: int, index: int) -> int:
    names = (stage, index) if student == 0 else (stage, student, index)
    return derive(run_seed, "replay", *names)


def collect_replay(
    run: RunDirectory, setup: Setup, plan: ReplayPlan, pool: WorkPool, models: Models, on_nap: Callable[[], None]
) -> dict[int, pa.Table]:
    """Have ``plan`` generated, record all of it, and give the valid part for every student.

    Where each student has its own, all get equally many, so that their batches hold the same current examples.
    """
    kept = _valid(run, setup, plan, _generate(setup, plan, pool, models, on_nap))
    students = setup.topology.students
    if setup.experiment.replay.generator != "own":
        table = _table(setup, plan, kept)
        return dict.fromkeys(students, table)
    own = {student: [index for index in kept if plan.students[index] == student] for student in students}
    fewest = min(map(len, own.values()))
    chosen = {s: _evenly(list(indices), fewest) for s, indices in own.items()}
    return {s: _table(setup, plan, {index: kept[index] for index in indices}) for s, indices in chosen.items()}


def _generate(
    setup: Setup, plan: ReplayPlan, pool: WorkPool, models: Models, on_nap: Callable[[], None]
) -> dict[int, np.ndarray]:
    """Index of a sample in the plan -> its ids, generated in chunks that each come from one student's model."""
    results: dict[int, np.ndarray] = {}

    def take(members: list[int], samples: list[np.ndarray]) -> None:
        results.update(zip(members, samples, strict=True))

    jobs = []
    for student in plan.generators:
        own = [index for index, maker in enumerate(plan.students) if maker == student]
        for chunk in in_chunks(len(own), setup.experiment.replay.chunk):
            members = [own[position] for position in chunk]
            gens, seeds = [plan.gens[i] for i in members], [plan.seeds[i] for i in members]
            name = f"replay for stage {plan.stage} by student {student}, samples {members[0]} to {members[-1]}"
            arguments = (f"replay-{plan.stage}.student-{student}", student, *models[student], gens, seeds)
            jobs.append(Job(name, "replay", arguments, partial(take, members), kind="replay"))
    pool.add(jobs, urgent=True)
    pool.wait(lambda: len(results) == len(plan.gens), on_nap)
    return results


def _valid(
    run: RunDirectory, setup: Setup, plan: ReplayPlan, samples: Mapping[int, np.ndarray]
) -> dict[int, GeneratedSample]:
    """The valid ones by their index; all of them are put on record."""
    kept: dict[int, GeneratedSample] = {}
    rows = []
    for index, task in enumerate(plan.tasks):
        ids = samples[index].tolist()
        parsed = parse_generated(ids, setup.tokenizer)
        valid = isinstance(parsed, GeneratedSample)
        if isinstance(parsed, GeneratedSample):
            kept[index] = parsed
        rows.append(
            {
                "index": index,
                "student": plan.students[index],
                "task": task,
                "valid": valid,
                "reason": "" if valid else str(parsed),
                "text": setup.tokenizer.decode(ids),
                "ids": ids,
            }
        )
    write_replay(run, plan.stage, rows)
    return kept


def _table(setup: Setup, plan: ReplayPlan, kept: Mapping[int, GeneratedSample]) -> pa.Table:
    tasks = [plan.tasks[index] for index in kept]
    return generated_table(list(kept.values()), tasks, setup.tokenizer, plan.stage)


def _evenly(items: list[int], count: int) -> list[int]:
    """``count`` of the items, evenly spread, so that no task loses more than others."""
    return [items[round(i * len(items) / count)] for i in range(count)] if count else []
