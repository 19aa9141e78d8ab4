"""Task teachers, trained before the students in a run of their own, and their answers to training examples.

Source: REFERENCE.md#word-kd, #seq-kd.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_l4.cluster.handles import EvaluatorHandle, ModelRef
from ray_l4.cluster.rpc import Ref, Rpc
from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.run.context import RunContext
from ray_l4.run.work_queue import Job, WorkQueue
from ray_l4.setup.early_check import finished_teachers
from ray_l4.setup.facts import recorded_facts
from ray_l4.setup.setup import Setup
from ray_l4.store.atomic import write_folder
from ray_l4.store.begun_with import recorded
from ray_l4.store.extension import finish_extension, record_extension
from ray_l4.store.records import described, read_weights, write_answers
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.store.tables import read_table
from ray_l4.text.assembly import with_answers
from ray_l4.text.chunks import in_chunks


def open_teachers(setup: Setup, run: RunDirectory) -> RunDirectory:
    """Return the run that trains the teachers: the one that ``teachers.run`` names, or one inside the run directory.

    Raises ConfigError or RunDirectoryError if the named run has not finished, or has other models or data.
    """
    named = named_teachers(setup)
    if named is not None:
        return named
    folder = run.teachers()
    if not (folder / "config.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that ended before the run directory was complete
        experiment = setup.of_teachers().experiment
        manifest = read_json(run.path / "manifest.json") | recorded(experiment)
        RunDirectory.create(folder, experiment, run.cluster(), manifest)
    else:
        _extend(RunDirectory.open(folder), setup, run)
    write_folder(folder / "tokenizer", setup.tokenizer.save)
    return RunDirectory.open(folder)


def _extend(teachers: RunDirectory, setup: Setup, run: RunDirectory) -> None:
    """Extend the run of the teachers if that of the students has been extended."""
    finish_extension(teachers)
    wanted = setup.of_teachers().experiment
    if len(teachers.experiment().stream) < len(wanted.stream):
        record_extension(teachers, wanted, run.manifest())


def named_teachers(setup: Setup) -> RunDirectory | None:
    """Return the run that ``teachers.run`` names; None if none is named or needed.

    Raises ConfigError or RunDirectoryError if that run has not finished, or has other models or data.
    """
    teachers = finished_teachers(setup.experiment)
    if teachers is None:
        return None
    items = list(teachers.experiment().items)
    untaught = [item for item in setup.items[len(items) :] if items == setup.items[: len(items)]]
    if untaught:
        raise RunDirectoryError(
            f"teachers.run: {teachers.path} has no teacher of {', '.join(untaught)}. Extend it first, by the same "
            f"data: ray-l4 extend {teachers.path} ..."
        )
    facts = recorded_facts(teachers.manifest(), str(teachers.path / "manifest.json"))
    if items != setup.items or {item: own.fingerprint for item, own in facts.items()} != setup.fingerprints:
        raise RunDirectoryError(
            f"teachers.run: {teachers.path} learned from different data, or with a different tokeniser. "
            "Train the teachers on the same stream (tasks, order, sizes, data.seed)."
        )
    return teachers


def teacher_weights(teachers: RunDirectory, stage: int) -> Any:
    """Return the weights of the teacher of an item. ``stage``: the item's index in the stream.

    Raises RunDirectoryError if they are damaged: going back to an earlier stage of the students would not help.
    """
    try:
        return read_weights(teacher_checkpoint(teachers, stage))
    except DamagedError as error:
        raise RunDirectoryError(f"{error} A resume trains those inside the run again.") from error


def teacher_checkpoint(teachers: RunDirectory, stage: int) -> Path:
    """Return the folder of the teacher of an item. ``stage``: the item's index in the stream."""
    return teachers.checkpoint(stage, teachers.result_epoch(stage, teachers.experiment().epochs_of(stage)), 0)


def distilled(
    context: RunContext,
    teachers: RunDirectory,
    items: Sequence[str],
    rpc: Rpc,
    queue: WorkQueue,
    on_nap: Callable[[], None],
) -> dict[str, pa.Table]:
    """Return the training examples of ``items`` of the stream with their teachers' answers.

    Evaluators decode the answers that the run directory does not have yet. ``description``: the configuration of the
    teachers' model.
    """
    setup, run = context.setup, context.directory
    for item in items:
        if not run.answers(item).is_file():
            stage = setup.items.index(item)
            description = rpc.put(described(teacher_checkpoint(teachers, stage)))
            model = ModelRef(f"teacher-{stage}", description, rpc.put(teacher_weights(teachers, stage)))
            texts = _decoded(setup, item, model, queue, on_nap)
            write_answers(run, item, setup.training[item]["sample_id"].to_pylist(), texts)
    return {item: _with_recorded(run, setup, item) for item in items}


def _decoded(setup: Setup, item: str, model: ModelRef, queue: WorkQueue, on_nap: Callable[[], None]) -> list[str]:
    """Return a teacher's answers to the training examples of its item, decoded by the evaluators."""
    chunks: dict[int, list[str]] = {}
    jobs = [
        Job(
            f"answers of the teacher of {item}, examples {rows.start} to {rows.stop - 1}",
            partial(_answer_rows, model, item, rows),
            partial(chunks.__setitem__, rows.start),
            kind="distil",
        )
        for rows in in_chunks(setup.training[item].num_rows, setup.experiment.replay.chunk)
    ]
    queue.add(jobs, urgent=True)
    queue.wait(lambda: len(chunks) == len(jobs), on_nap)
    return [text for start in sorted(chunks) for text in chunks[start]]


def _answer_rows(model: ModelRef, item: str, rows: range, evaluator: EvaluatorHandle) -> Ref[list[str]]:
    return evaluator.answer_training(model, item, rows)


def _with_recorded(run: RunDirectory, setup: Setup, item: str) -> pa.Table:
    path, needed = run.answers(item), setup.training[item].num_rows
    table = read_table(path, ("answer",))
    found = 0 if table is None else table.num_rows
    if table is None or found != needed:
        raise RunDirectoryError(f"{path}: has {found} answers to {needed} examples; the run is damaged. Restore it.")
    return with_answers(setup.training[item], table["answer"].to_pylist(), setup.tokenizer, setup.max_length)
