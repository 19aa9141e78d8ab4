"""What one stage learns, made from the segments of its assignment: ``train.jsonl``, and ``test.jsonl`` of a new task.

The files follow from the assignment and the segments alone. They have the columns of ``tasks/schema.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import write_folder
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.held_out import held_out
from ray_l4.store.inbox.places import shelf_folder
from ray_l4.store.inbox.record import Assignment
from ray_l4.store.inbox.segments import Segment, read_segment


class StageData(NamedTuple):
    """Examples of a stage."""

    train: list[Example]
    test: list[Example]
    """Empty for a task that the run has tests of."""


def stage_data(run: Path, assignment: Assignment) -> StageData:
    """Return the examples of a stage. Raises DamagedError if a segment of it is damaged.

    They are in order of their ids, which come from their texts: what is learned does not depend on which came first.
    """
    arrived = sorted(_read(run, assignment.task, "segments", assignment.segments), key=lambda one: one.id)
    test = list(_read(run, assignment.task, "tests", assignment.tests))
    if assignment.held_out:
        chosen = held_out((one.id for one in arrived), assignment.task, assignment.seed, assignment.held_out)
        test = [example for example in arrived if example.id in chosen]
    tested = {example.id for example in test}
    return StageData([example for example in arrived if example.id not in tested], test)


def write_stage_data(run: Path, assignment: Assignment) -> Path:
    """Return the folder of what a stage learns, which is written if it is not there. Raises as ``stage_data``."""
    folder = assignment.folder(run)
    if not folder.is_dir():  # under its name it is whole
        write_folder(folder, partial(_fill, task=assignment.task, data=stage_data(run, assignment)))
    return folder


def _read(run: Path, task: str, kind: str, names: Sequence[str]) -> Iterable[Example]:
    folder = shelf_folder(run, task, kind)
    for name in names:
        segment = Segment.of(name)
        if segment is None:
            raise RunDirectoryError(f"{folder / name}: named in the record of the inbox, and not the name of a segment")
        yield from read_segment(folder, segment)


def _fill(folder: Path, task: str, data: StageData) -> None:
    for name, examples in zip(("train", "test"), data, strict=True):
        if examples:
            lines = (json.dumps(_row(task, example), ensure_ascii=False) for example in examples)
            (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _row(task: str, example: Example) -> dict[str, object]:
    answers = list(example.answers)
    asked: dict[str, object] = {
        "context": example.context,
        "question": example.question,
        "answer": answers[0],
        "references": answers,
    }
    return asked | {"task": task, "sample_id": example.id, "meta": example.meta}
