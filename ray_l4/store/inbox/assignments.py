"""What waits in an inbox, and how it is given to stages: each segment to one, and once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import DamagedError
from ray_l4.store.begun_with import EXPERIMENT_KEY
from ray_l4.store.inbox.example import now
from ray_l4.store.inbox.held_out import SHARE
from ray_l4.store.inbox.inbox import holding
from ray_l4.store.inbox.places import numbers_of_folders, shelf_folder
from ray_l4.store.inbox.record import Assignment, assignments, save
from ray_l4.store.inbox.segments import Segment, read_segment, segments_in
from ray_l4.store.inbox.stage_data import stage_data, write_stage_data
from ray_l4.store.run_directory import RunDirectory


@dataclass(frozen=True)
class Waiting:
    """Segments of a task that no stage was given yet."""

    segments: tuple[Segment, ...] = ()

    @property
    def examples(self) -> int:
        """Number of their examples."""
        return sum(segment.examples for segment in self.segments)


def waiting(run: Path, task: str) -> Waiting:
    """Return what waits to be learned of a task. Nothing but names is read; raises as ``assignments``."""
    return _waiting(run, task, assignments(run))


def pending(run: RunDirectory) -> list[Assignment]:
    """Return the assignments whose stage is not in the run's stream yet. Raises RunDirectoryError if damaged.

    An extension that was cut off is in the manifest alone: whoever locks the run next finishes it (``extension.py``).
    """
    names = _data_in_stream(run)
    return [each for each in assignments(run.path) if each.folder(run.path).name not in names]


def take(run: RunDirectory, tasks: Sequence[str]) -> list[Assignment]:
    """Give all that waits of ``tasks`` to new stages, one for each task, and return their assignments.

    Their data folders are on disk on return. While earlier assignments are pending these are returned instead, and
    nothing new is assigned. A task that has nothing to learn gets none: what waits is damaged, or the run does not know
    the task and would have no tests for it.

    Raises:
        RunDirectoryError: a record is damaged, the storage refuses, or another process writes for too long.
    """
    with holding(run.path):
        found = pending(run)
        if not found:
            made, experiment = assignments(run.path), run.experiment()
            for task in dict.fromkeys(tasks):
                new = _assignment(run.path, task, [*made, *found], experiment)
                if new is not None:
                    found.append(new)
            if found:
                save(run.path, [*made, *found])
        for assignment in found:
            write_stage_data(run.path, assignment)
        return found


def _assignment(run: Path, task: str, made: Sequence[Assignment], experiment: ExperimentConfig) -> Assignment | None:
    """Return the next assignment of a task; None if there is nothing to learn."""
    segments = _whole(shelf_folder(run, task, "segments"), _waiting(run, task, made).segments)
    tests: list[str] = []
    share = 0.0
    if task not in {known.name for known in experiment.stream} | {earlier.task for earlier in made}:
        folder = shelf_folder(run, task, "tests")
        tests = _whole(folder, segments_in(folder))
        share = 0.0 if tests else SHARE
    number = 1 + max([0, *(earlier.number for earlier in made), *numbers_of_folders(run)])
    new = Assignment(
        number=number,
        task=task,
        segments=segments,
        tests=tests,
        held_out=share,
        seed=experiment.seed,
        when=now(),
    )
    train, test = stage_data(run, new)
    return new if train and (test or not share) else None


def _waiting(run: Path, task: str, made: Sequence[Assignment]) -> Waiting:
    given = {name for each in made if each.task == task for name in each.segments}
    return Waiting(tuple(segments_in(shelf_folder(run, task, "segments"), given)))


def _whole(folder: Path, segments: Sequence[Segment]) -> list[str]:
    """Return the names of the segments that can be read."""
    found = []
    for segment in segments:
        try:
            read_segment(folder, segment)
        except DamagedError:  # the inbox reports it (``Inbox.damaged``); it waits until it is restored
            continue
        found.append(segment.name)
    return found


def _data_in_stream(run: RunDirectory) -> set[str]:
    """Return the names of the data folders of the stream that are folders of a run; the run may have been moved."""
    recorded = run.manifest().get(EXPERIMENT_KEY, {}).get("stream", [])
    paths = [item.path for item in run.experiment().stream] + [item.get("path") for item in recorded]
    return {Path(path).name for path in paths if path and Path(path).parent.name == "data"}
