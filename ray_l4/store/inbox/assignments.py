"""What waits in an inbox, and how it is given to stages: each segment to one, and once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.begun_with import EXPERIMENT_KEY
from ray_l4.store.inbox.example import now
from ray_l4.store.inbox.held_out import SHARE
from ray_l4.store.inbox.inbox import holding
from ray_l4.store.inbox.places import inbox_of, numbers_of_folders, shelf_folder
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
    """Return the assignments whose stage is not in the run's stream yet, without those that were set aside.

    Raises RunDirectoryError if a record is damaged.

    An extension that was cut off is in the manifest alone: whoever locks the run next finishes it (``extension.py``).
    """
    return [each for each in _not_in_stream(run) if each.failed is None]


def set_aside(run: RunDirectory, numbers: Collection[int], why: str) -> None:
    """Give up learning the assignments of these numbers, so that they no longer keep others waiting.

    They are neither pending nor given again; their segments and data folders stay (``left_aside``). ``why``: what went
    wrong, in a line. Raises RunDirectoryError if there is no such assignment, a record is damaged, the storage refuses,
    or another process writes for too long.
    """
    with holding(run.path):
        made = assignments(run.path)
        unknown = set(numbers) - {each.number for each in made}
        if unknown:
            raise RunDirectoryError(
                f"{inbox_of(run.path)}: there is no assignment {min(unknown)}, so none is set aside"
            )
        save(run.path, [each.model_copy(update={"failed": why}) if each.number in numbers else each for each in made])


def left_aside(run: RunDirectory) -> list[Assignment]:
    """Return the assignments that were set aside and are still to be dealt with by hand.

    Those are dealt with whose data folder was removed, or which a stage of the stream has. Raises as ``pending``.
    """
    return [each for each in _not_in_stream(run) if each.failed is not None and each.folder(run.path).is_dir()]


def take(run: RunDirectory, tasks: Sequence[str]) -> list[Assignment]:
    """Give all that waits of ``tasks`` to new stages, one for each task, and return their assignments.

    Their data folders are on disk on return. While earlier assignments are pending these are returned instead, and
    nothing new is assigned; those that were set aside keep nothing waiting. A task that has nothing to learn gets none:
    what waits is damaged, or the run does not know the task and would have no tests for it.

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
    begun = {earlier.task for earlier in made if earlier.failed is None}
    if task not in begun | {known.name for known in experiment.stream}:
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


def _not_in_stream(run: RunDirectory) -> list[Assignment]:
    names = _data_in_stream(run)
    return [each for each in assignments(run.path) if each.folder(run.path).name not in names]


def _data_in_stream(run: RunDirectory) -> set[str]:
    """Return the names of the data folders of the stream that are folders of a run; the run may have been moved."""
    recorded = run.manifest().get(EXPERIMENT_KEY, {}).get("stream", [])
    paths = [item.path for item in run.experiment().stream] + [item.get("path") for item in recorded]
    return {Path(path).name for path in paths if path and Path(path).parent.name == "data"}
