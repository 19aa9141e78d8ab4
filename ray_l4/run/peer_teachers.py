"""The students of a finished run as teachers: their weights, and the examples that they replayed last.

Source: REFERENCE.md#fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.run.context import RunContext
from ray_l4.setup.peer_teachers import finished_peers, peer_checkpoint, taught_stage
from ray_l4.store.checksums import file_sum
from ray_l4.store.records import read_weights, weights_file, write_replay
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.tables import read_table
from ray_l4.text.replay import PseudoExample, generated_table, parse

PEERS_KEY = "peers"
"""Manifest key of the SHA-256 of what a run has from the run of its teachers: their weights, and the replay."""
_REPLAY = "replay"
_COLUMNS = ("index", "student", "task", "valid", "reason", "text", "ids")


def peer_weights(run: RunDirectory, experiment: ExperimentConfig, student: int) -> Any:
    """Return the weights of a student of the ``run`` that teaches. Raises RunDirectoryError if they are damaged."""
    try:
        return read_weights(peer_checkpoint(run, taught_stage(experiment), student))
    except DamagedError as error:
        raise RunDirectoryError(f"{error} It is a checkpoint of a teacher, in another run.") from error


def peer_entries(experiment: ExperimentConfig) -> dict[str, object]:
    """Return the entry of a manifest about the run of a method's teachers, if these are students of one."""
    run = finished_peers(experiment)
    return {} if run is None else {PEERS_KEY: _digests(run, experiment)}


def refuse_other_peers(manifest: Mapping[str, Any], experiment: ExperimentConfig) -> None:
    """Raise RunDirectoryError if the teachers or the replay are not those with which a run began."""
    run, known = finished_peers(experiment), manifest.get(PEERS_KEY)
    if run is None or not isinstance(known, Mapping):
        return
    found = _digests(run, experiment)
    other = next((name for name in {**known, **found} if known.get(name) != found.get(name)), None)
    if other is not None:
        what = "the replay of its last stage" if other == _REPLAY else f"the weights of student {other}"
        raise RunDirectoryError(
            f"{run.path}: {what} changed since they were first used, so the result would be another. Bring the files "
            f"back from a copy, or fuse again: ray-l4 fuse {run.path} --run-dir FOLDER"
        )


def recorded_replay(context: RunContext, run: RunDirectory, stage: int) -> pa.Table | None:
    """Return the valid examples that the ``run`` of the teachers replayed last, and record all as those of ``stage``.

    None if it replayed nothing. Raises RunDirectoryError if the file is damaged.
    """
    setup = context.setup
    table = read_table(run.replay(taught_stage(setup.experiment)), _COLUMNS)
    if table is None:
        return None
    rows = table.to_pylist()
    write_replay(context.directory, stage, rows)
    kept, tasks = [], []
    for row in rows:
        parsed = parse(row["ids"], setup.tokenizer) if row["valid"] else row["reason"]
        if isinstance(parsed, PseudoExample):
            kept.append(parsed)
            tasks.append(row["task"])
    context.progress.add_event(f"replay: {len(kept)} examples that {run.path} replayed in its last stage")
    return generated_table(kept, tasks, setup.tokenizer, stage)


def _digests(run: RunDirectory, experiment: ExperimentConfig) -> dict[str, str | None]:
    stage = taught_stage(experiment)
    weights = {
        str(student): file_sum(weights_file(peer_checkpoint(run, stage, student)))
        for student in experiment.teachers.students
    }
    replay = run.replay(stage)
    return {**weights, _REPLAY: file_sum(replay) if replay.is_file() else None}
