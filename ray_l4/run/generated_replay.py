"""Generated replay: requests pseudo-examples, divides the work among evaluators, and keeps the valid ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_l4.cluster.handles import ModelRef
from ray_l4.run.context import RunContext
from ray_l4.run.work_queue import Job, WorkQueue
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.store.records import read_generated, write_generated, write_replay
from ray_l4.text.chunks import in_chunks
from ray_l4.text.replay import PseudoExample, generated_table, num_replayed_per_task, parse
from ray_l4.text.scarce_replay import scarce_replay


@dataclass(frozen=True)
class PseudoExamples:
    """The pseudo-examples that a stage needs.

    Pseudo-example i is generated with the model of ``students[i]``, begins with the task token ``gens[i]``, and is
    sampled with ``seeds[i]``, whichever evaluator does it.
    """

    stage: int
    students: tuple[int, ...]
    tasks: tuple[str, ...]
    """The task that each pseudo-example imitates."""
    gens: tuple[int, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, setup: Setup, stage: int, students: Sequence[int]) -> PseudoExamples:
        """Request equal numbers of pseudo-examples of all other tasks learned before, in the order of the stream.

        ``students``: those present, from which ``replay.generator`` selects. Source: REFERENCE.md#replay.
        """
        earlier = setup.earlier_tasks(stage) if setup.method.replay == "generated" else []
        per_task = num_replayed_per_task(setup.replay_ratio(stage), setup.num_examples(stage), len(earlier))
        tasks = [task for task in earlier for _ in range(per_task)]
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
        """The students that generate pseudo-examples, in ascending order."""
        return sorted(set(self.students))


def _seed(run_seed: int, stage: int, student: int, index: int) -> int:
    names = (stage, index) if student == 0 else (stage, student, index)
    return derive(run_seed, "replay", *names)


def collect_replay(
    context: RunContext,
    wanted: PseudoExamples,
    students: Sequence[int],
    queue: WorkQueue,
    model_of: Callable[[int], ModelRef],
    on_nap: Callable[[], None],
) -> dict[int, pa.Table]:
    """Generate and record the pseudo-examples, and return the valid ones for each of the ``students``.

    Those on record are not generated again. If each student generates its own, all get the same number, so that their
    batches hold the same current examples. ``model_of`` returns the model of a student that generates.
    """
    generated = _on_record(context, wanted)
    if len(generated) < len(wanted.gens):
        generated = _generate(context, wanted, generated, queue, model_of, on_nap)
    kept = _valid(context, wanted, generated)
    if context.setup.experiment.replay.generator != "own":
        table = _table(context.setup, wanted, kept)
        return dict.fromkeys(students, table)
    own = {student: [index for index in kept if wanted.students[index] == student] for student in students}
    fewest = min(map(len, own.values()))
    chosen = {s: _evenly(list(indices), fewest) for s, indices in own.items()}
    return {
        s: _table(context.setup, wanted, {index: kept[index] for index in indices}) for s, indices in chosen.items()
    }


def _on_record(context: RunContext, wanted: PseudoExamples) -> dict[int, np.ndarray]:
    """Return index of a pseudo-example -> its token ids, for those that were generated before an interruption."""
    return {
        row["index"]: np.asarray(row["ids"])
        for row in read_generated(context.directory, wanted.stage)
        if 0 <= row["index"] < len(wanted.gens)
        and (row["student"], row["task"]) == (wanted.students[row["index"]], wanted.tasks[row["index"]])
    }


def _generate(
    context: RunContext,
    wanted: PseudoExamples,
    on_record: Mapping[int, np.ndarray],
    queue: WorkQueue,
    model_of: Callable[[int], ModelRef],
    on_nap: Callable[[], None],
) -> dict[int, np.ndarray]:
    """Generate in chunks, each with one student's model, and record each chunk; those ``on_record`` are left out.

    Returns index of a pseudo-example -> its token ids.
    """
    setup, progress = context.setup, context.progress
    results = dict(on_record)

    def take(members: list[int], generated: list[np.ndarray]) -> None:
        results.update(zip(members, generated, strict=True))
        rows = [
            {"index": i, "student": wanted.students[i], "task": wanted.tasks[i], "ids": results[i].tolist()}
            for i in members
        ]
        write_generated(context.directory, wanted.stage, rows)
        progress.update(replay_done=len(results))

    jobs, longest = [], setup.replay_length(wanted.stage)
    for student in wanted.generators:
        own = [index for index, generator in enumerate(wanted.students) if generator == student]
        chunks = in_chunks(len(own), setup.experiment.replay.chunk)
        missing = [
            members
            for members in ([own[position] for position in chunk] for chunk in chunks)
            if not on_record.keys() >= set(members)
        ]
        if missing:
            model = model_of(student)
            jobs += [_chunk_job(wanted, student, members, model, longest, take) for members in missing]
    progress.update(replay_done=len(results), replay_total=len(wanted.gens))
    queue.add(jobs, urgent=True)
    try:
        queue.wait(lambda: len(results) == len(wanted.gens), on_nap)
    except BaseException:
        queue.drop(wanted)  # other chunks may need the weights of a student that is lost
        raise
    finally:
        progress.update(replay_total=0)
    return results


def _chunk_job(
    wanted: PseudoExamples,
    student: int,
    members: list[int],
    model: ModelRef,
    max_length: int,
    take: Callable[[list[int], list[np.ndarray]], None],
) -> Job[list[np.ndarray]]:
    gens, seeds = [wanted.gens[index] for index in members], [wanted.seeds[index] for index in members]
    return Job(
        f"replay for stage {wanted.stage} by student {student}, pseudo-examples {members[0]} to {members[-1]}",
        lambda evaluator: evaluator.replay(model, student, gens, seeds, max_length),
        partial(take, members),
        kind="replay",
        owner=wanted,
    )


def _valid(
    context: RunContext, wanted: PseudoExamples, generated: Mapping[int, np.ndarray]
) -> dict[int, PseudoExample]:
    """Record all pseudo-examples, warn of tasks with few valid ones, and return the valid ones by index."""
    setup = context.setup
    kept: dict[int, PseudoExample] = {}
    rows: list[dict[str, Any]] = []
    for index, task in enumerate(wanted.tasks):
        ids = generated[index].tolist()
        parsed = parse(ids, setup.tokenizer)
        valid = isinstance(parsed, PseudoExample)
        if isinstance(parsed, PseudoExample):
            kept[index] = parsed
        rows.append(
            {
                "index": index,
                "student": wanted.students[index],
                "task": task,
                "valid": valid,
                "reason": "" if valid else str(parsed),
                "text": setup.tokenizer.decode(ids),
                "ids": ids,
            }
        )
    write_replay(context.directory, wanted.stage, rows)
    for warning in scarce_replay(rows):
        context.progress.add_event(f"warning: {warning}")
    return kept


def _table(setup: Setup, wanted: PseudoExamples, kept: Mapping[int, PseudoExample]) -> pa.Table:
    tasks = [wanted.tasks[index] for index in kept]
    return generated_table(list(kept.values()), tasks, setup.tokenizer, wanted.stage)


def _evenly(items: list[int], count: int) -> list[int]:
    """Select ``count`` of the items, evenly spread, so that no task loses more than others."""
    return [items[round(i * len(items) / count)] for i in range(count)] if count else []
