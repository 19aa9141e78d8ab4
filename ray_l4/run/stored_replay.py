"""Stored real examples of earlier tasks, for experience replay and A-GEM."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.store.records import write_replay
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.replay import num_replayed_per_task
from ray_l4.text.tokens import as_stored, concatenated


def reservoir(setup: Setup, stage: int) -> pa.Table:
    """Return the stored examples of the tasks before ``stage``: at most ``replay.capacity``, each equally likely.

    Every example has a random key that follows from the seed, its task and its row; those with the smallest keys are
    stored. This is reservoir sampling (Vitter 1985) without state: the reservoir of any stage can be recomputed.
    """
    tables = [setup.training[task] for task in setup.tasks[:stage]]
    seen = concatenated(*tables)
    capacity = setup.experiment.replay.capacity
    if capacity is None or capacity >= seen.num_rows:
        return seen
    keys = np.concatenate(
        [
            np.random.default_rng(derive(setup.experiment.seed, "reservoir", task)).random(table.num_rows)
            for task, table in zip(setup.tasks[:stage], tables, strict=True)
        ]
    )
    return seen.take(pa.array(np.sort(np.argsort(keys, kind="stable")[:capacity])))


def stored_replay(setup: Setup, stage: int) -> pa.Table | None:
    """Draw stored examples to replay in ``stage``; returns None if there are none.

    Draws as many per earlier task as LAMOL would generate, with replacement; a task without stored examples gets
    none. Source: REFERENCE.md#replay, real-sample variant.
    """
    if stage == 0:
        return None
    kept = reservoir(setup, stage)
    tasks = np.asarray(kept["task"].to_pylist())
    count = num_replayed_per_task(setup.experiment.replay.ratio, setup.num_examples(stage), stage)
    drawn = []
    for task in setup.tasks[:stage]:
        rows = np.flatnonzero(tasks == task)
        if len(rows):
            generator = np.random.default_rng(derive(setup.experiment.seed, "stored replay", stage, task))
            drawn.append(generator.choice(rows, size=count))
    rows = np.concatenate(drawn)
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
