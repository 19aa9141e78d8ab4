"""What a live run's directory says: what is still to be learned, what became of examples, what was served when."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ray_l4.live.learner import FEWEST_OF_A_NEW_TASK
from ray_l4.methods import stages_of
from ray_l4.store.inbox.assignments import pending, waiting
from ray_l4.store.inbox.places import shelf_folder
from ray_l4.store.inbox.segments import read_segment, segments_in
from ray_l4.store.promotion import decisions
from ray_l4.store.run_directory import Cell, RunDirectory
from ray_l4.store.tables import read_table
from ray_l4.tasks.inbox_tasks import inbox_tasks


def is_settled(run: RunDirectory) -> bool:
    """Return whether all that waits for a stage was learned, and every stage was judged."""
    experiment = run.experiment()
    least = experiment.live.min_examples
    for name, task in inbox_tasks(run, experiment).tasks.items():
        if waiting(run.path, name).examples >= (min(FEWEST_OF_A_NEW_TASK, least) if task.is_new else least):
            return False
    judged = {decision.stage for decision in decisions(run)}
    stages = run.state().stages_done
    return not pending(run) and run.is_complete() and bool(judged) and set(range(min(judged), stages)) <= judged


def promotions(run: RunDirectory) -> dict[int, float]:
    """Return the stages that were promoted, and when they first were (seconds since 1970, cut to whole ones)."""
    found: dict[int, float] = {}
    for decision in decisions(run):
        if decision.promoted:
            found.setdefault(decision.stage, datetime.fromisoformat(decision.when).timestamp())
    return found


def stage_names(run: RunDirectory) -> list[str]:
    """Return the names of the stages that have finished."""
    return [stage.name for stage in stages_of(run.experiment())][: run.state().stages_done]


def stored(run: RunDirectory, task: str) -> Counter[str]:
    """Return how often the segments of a task have each example, by id."""
    folder = shelf_folder(run.path, task, "segments")
    return Counter(example.id for segment in segments_in(folder) for example in read_segment(folder, segment))


def learned(run: RunDirectory, task: str) -> Counter[str]:
    """Return how often the finished stages of a task have each example of the inbox, learned or held out, by id."""
    done = run.state().stages_done
    names = [name for stage in stages_of(run.experiment())[:done] for name in stage.items]
    items = run.experiment().items
    folders = [items[name].path for name in names if items[name].name == task]
    inboxes = [Path(path) for path in folders if path is not None and Path(path).name.startswith("inbox-")]
    return Counter(sample_id for folder in inboxes for sample_id in _sample_ids(folder))


def _sample_ids(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["sample_id"]


def predictions(run: RunDirectory, stage: int, student: int, task: str) -> dict[str, str]:
    """Return the answers by which a stage was scored on a task, by sample id; none if it was not scored on it."""
    epoch = run.result_epoch(stage, run.experiment().epochs_of(stage))
    path = run.path / "predictions" / f"{Cell(stage, epoch, student, task).name}.parquet"
    table = read_table(path, ("sample_id", "prediction"))
    return {row["sample_id"]: row["prediction"] for row in table.to_pylist()} if table is not None else {}
