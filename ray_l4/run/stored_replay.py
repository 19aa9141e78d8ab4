"""Stored real examples of earlier tasks, for experience replay, A-GEM and DER++."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.store.records import write_replay
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.replay import num_replayed_per_task
from ray_l4.text.stored import reservoir_of
from ray_l4.text.tokens import as_stored


def reservoir(setup: Setup, stage: int) -> pa.Table:
    """Return the stored examples of the stages before ``stage``: at most ``replay.capacity``, each equally likely."""
    earlier = [item for own in setup.stages[:stage] for item in own.items]
    return reservoir_of([setup.stored_part(item) for item in earlier], setup.experiment.replay.capacity)


def stored_replay(setup: Setup, stage: int) -> pa.Table | None:
    """Draw stored examples to replay in ``stage``; returns None if there are none.

    Draws as many per other task learned before as LAMOL would generate, with replacement; a task without stored
    examples gets none. Source: REFERENCE.md#replay, real-sample variant.
    """
    earlier = setup.earlier_tasks(stage)
    if not earlier:
        return None
    kept = reservoir(setup, stage)
    tasks = np.asarray(kept["task"].to_pylist())
    count = num_replayed_per_task(setup.replay_ratio(stage), setup.num_examples(stage), len(earlier))
    drawn = []
    for task in earlier:
        rows = np.flatnonzero(tasks == task)
        if len(rows):
            generator = np.random.default_rng(derive(setup.experiment.seed, "stored replay", stage, task))
            drawn.append(generator.choice(rows, size=count))
    rows = np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)
    return as_stored(kept.take(pa.array(rows)).combine_chunks(), stage) if len(rows) else None


def record_stored(run: RunDirectory, setup: Setup, stage: int, table: pa.Table) -> None:
    """Write the stored examples that ``stage`` replays to the run directory, in the format of generated ones."""
    rows = [
        {
            "index": index,
            "student": None,
            "task": row["task"],
            "valid": True,
            "reason": "",
            "text": setup.tokenizer.decode([row["gen"], *row["ids"]]),
            "ids": [row["gen"], *row["ids"]],
        }
        for index, row in enumerate(table.to_pylist())
    ]
    write_replay(run, stage, rows)
