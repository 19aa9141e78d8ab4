"""The run directory: results of a run, and everything needed to resume it.

::

    config.yaml  cluster.yaml      resolved experiment and cluster profile
    manifest.json                  command, versions and machine of the first start
    state.json                     progress of the run, written last after a stage
    tokenizer/                     tokeniser with the task tokens
    checkpoints/STAGE/EPOCH/student-N/   Hugging Face folders
    replay/STAGE.parquet           replayed examples, those dropped included
    states/                        states of the stage under way (store/states.py)
    teachers/                      run directory of the task teachers, if the method has any
    fused/                         run directory of one student of all peers (ray-l4 fuse), unless it is elsewhere
    distil/ITEM.parquet            answers of a task teacher to its training examples
    tests/TASK.parquet             test examples, so that a run can be extended when the data is gone
    stored/ITEM.parquet            training examples that stay, if the method replays real ones
    memory/ITEM.parquet            training examples as text, if any are shown before questions
    guards/STAGE.student-N.safetensors   state of a student's guard, such as the importance of weights
    timeline.parquet               spans of work of every process
    steps/STAGE.EPOCH.parquet      figures of every step
    scores/CELL.json  predictions/CELL.parquet   one per checkpoint and task, and per task for the peers together
    promoted.json                  decisions about stages: served or not (store/promotion.py)
    live.yaml                      profile with which a live service learns
    inbox/  data/                  examples that arrived later, and what stages learn of them (store/inbox/)
    general/CHECKPOINT.json        perplexity on the general text, if there is one (store/general.py)
    validation/STAGE.json          validation losses of the epochs, and the epoch that was chosen, if asked for
    logs/                          command.log: what the command printed; a file for each logger
    tensorboard/                   event files
    summary.json  report.md        result
    promoted.json                  which stage is served (store/promotion.py)
    inbox/  data/                  examples that arrived later, and what stages learn of them (store/inbox/)

During a run only the coordinator writes here, so nodes do not need to share a disk; but for the last two lines, which
belong to services.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml, load_cluster, load_experiment
from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.atomic import finish_replacements, matching, write_text
from ray_l4.store.lock import LOCK, is_locked, locked
from ray_l4.store.names import file_part, make_private
from ray_l4.store.record_types import MOST, Manifest, Record, Score, Validation, check_record, parsed
from ray_l4.store.sealed import unsealed, write_record
from ray_l4.store.tables import read_table
from ray_l4.store.unwritable import unwritable_message

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger("ray_l4.coordinator")


class RunState(BaseModel):
    """Progress of a run. It refers to all peers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages_done: int = 0
    """Number of finished stages: the checkpoints of all students are on disk."""
    wall_seconds: float = 0.0
    """Run time in seconds, without interruptions."""
    peak_memory_bytes: dict[str, int] = {}
    """Peak resident or GPU memory of each actor in bytes."""
    restarts: int = 0
    """Number of times that a stage was repeated because a student was lost."""
    lost_students: dict[int, str] = {}
    """Lost students that the run continued without, each with the reason."""


START = -1
"""Stands for the stage of a cell about the model that a student begins its run with."""

TOGETHER = MOST + 1
"""In the place of a student's number: all present students together, scored by the mean of their probabilities. No
student has this number, and it comes after theirs."""


def row_name(student: int) -> str:
    """Return the name of a student, or of ``TOGETHER``, in the names of files and curves."""
    return "together" if student == TOGETHER else f"student-{student}"


def row_title(student: int) -> str:
    """Return the name of a student, or of ``TOGETHER``, for people."""
    return "together" if student == TOGETHER else f"student {student}"


@dataclass(frozen=True, order=True)
class Cell:
    """Position of a score: the checkpoint of a student, or those of all (``TOGETHER``), and the task of the test."""

    stage: int
    epoch: int
    student: int
    task: str

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint, or of those of one epoch together; of the model that the student begins with,
        if the stage is ``START``."""
        if self.stage == START:
            return f"start.{row_name(self.student)}"
        return f"stage-{self.stage}.epoch-{self.epoch}.{row_name(self.student)}"

    @property
    def name(self) -> str:
        """Name of the cell and of its files. A user's task can have any name, such as a/b."""
        return f"{self.checkpoint}.{file_part(self.task)}"


_STEP = ("stage", "step", "student")
"""Columns that say which step of whom figures are of."""
SECONDS = ("forward_seconds", "wait_seconds", "backward_seconds", "idle_seconds")
"""Columns of a step's figures whose sum is the time of a student's steps."""
_WRITER = f"{LOCK}.writer"
_WRITER_PATIENCE = 20.0
"""Seconds for a coordinator to end whose command has been killed."""
_CLAIM = ".claim"
"""File that is there while a run directory is created."""
_REPLACED = ("checkpoints", "states", "guards", "replay", "debug", "teachers")
"""Folders in which a process that was killed may have left temporary files and folders."""
_OWN_DATA = re.compile(r"data/inbox-\d+\..+")
"""The end of the path of what a stage learns from the inbox."""
_CELL = re.compile(r"stage-(\d+)\.epoch-(\d+)\.(?:student-(\d+)|together)\.(.+)\.json")


class RunDirectory:
    """The directory of one run: paths of its files, and access to its records."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls, path: Path, experiment: ExperimentConfig, cluster: ClusterConfig, manifest: dict[str, Any]
    ) -> RunDirectory:
        """Create a run directory. Raises RunDirectoryError if ``path`` exists and is not an empty folder."""
        refuse_taken(path)
        claim = path / _CLAIM
        try:
            make_private(path)
            claim.touch(exist_ok=False)  # of two processes that found the folder empty, one gets it
        except FileExistsError:
            raise _taken(path) from None
        except OSError as error:
            message = unwritable_message(path, error, is_new=True) or f"{path}: cannot be created ({error.strerror})"
            raise RunDirectoryError(message) from error
        try:
            if any(file != claim for file in path.iterdir()):
                raise _taken(path)
            run = cls(path)
            try:
                write_text(path / "cluster.yaml", dump_yaml(cluster))
                write_record(path / "manifest.json", manifest)
                run.save_state(RunState())
                write_text(path / "config.yaml", dump_yaml(experiment))  # last: it marks the directory as a run
            except RunDirectoryError:  # what is no run yet must not stand in the way of the next attempt
                for name in ("cluster.yaml", "manifest.json", "state.json"):
                    (path / name).unlink(missing_ok=True)
                raise
        finally:
            claim.unlink()
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run directory. Raises RunDirectoryError if ``path`` is not one."""
        if not (path / "config.yaml").is_file():
            raise RunDirectoryError(f"{path}: not a run directory ({why_no_run(path)})")
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory for this process, the command.

        Raises RunDirectoryError if another command holds the lock, or if one that was killed has left a coordinator
        that still writes.
        """
        with locked(self.path):
            with self.writing():
                pass
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the directory for the coordinator, and put in order what one that ended while it wrote has left.

        Waits for one that is about to end. Raises RunDirectoryError if it does not.
        """
        with locked(self.path, _WRITER, patience=_WRITER_PATIENCE):
            for name in _REPLACED:
                finish_replacements(self.path / name)
            yield

    def is_being_written(self) -> bool:
        """Return whether a command or a coordinator is at work here, as far as this machine can tell."""
        return is_locked(self.path) or is_locked(self.path, _WRITER)

    def experiment(self) -> ExperimentConfig:
        """Return the experiment as it was resolved at the start of the run, or when it was last extended.

        Data of the run itself (``data/``) is found where the run is now.
        """
        experiment = load_experiment(self.path / "config.yaml")
        moved = [self._moved(item.path) for item in experiment.stream]
        if moved == [item.path for item in experiment.stream]:
            return experiment
        items = zip(experiment.stream, moved, strict=True)
        return experiment.model_copy(
            update={"stream": [item.model_copy(update={"path": path}) for item, path in items]}
        )

    def _moved(self, path: Path | None) -> Path | None:
        """Return the place of an item's data if it is the run's own and the run has been moved; otherwise ``path``."""
        if path is None or not _OWN_DATA.fullmatch(f"{path.parent.name}/{path.name}"):
            return path
        own = self.path.absolute() / "data" / path.name
        return own if own.is_dir() else path

    def cluster(self) -> ClusterConfig:
        """Return the cluster profile of the start of the run."""
        return load_cluster(self.path / "cluster.yaml")

    def state(self) -> RunState:
        """Return the progress of the run. Raises RunDirectoryError if ``state.json`` is missing or damaged."""
        path = self.path / "state.json"
        found = read_json(path)
        try:
            return RunState.model_validate(found)
        except ValidationError as error:
            raise DamagedError(
                f"{path}: damaged, or written by another version: {error.errors()[0]['msg']}. Restore it from a copy; "
                "without it the run cannot be resumed."
            ) from error

    def save_state(self, state: RunState) -> None:
        """Write the progress of the run."""
        write_record(self.path / "state.json", state.model_dump())

    def checkpoint(self, stage: int, epoch: int, student: int) -> Path:
        """Return the folder of a student's checkpoint after ``epoch`` (from 1) of ``stage`` (from 0)."""
        return self.path / "checkpoints" / f"stage-{stage}" / f"epoch-{epoch}" / f"student-{student}"

    def validation(self, stage: int) -> Path:
        """Return the file of a stage's validation losses and of the epoch that was chosen by them."""
        return self.path / "validation" / f"stage-{stage}.json"

    def result_epoch(self, stage: int, epochs: int) -> int:
        """Return the epoch (from 1) whose checkpoint is the result of ``stage``.

        It is the one that validation chose, otherwise the last one of ``epochs``, the epochs of the experiment.
        """
        path = self.validation(stage)
        return int(read_record(path, Validation)["epoch"]) if path.is_file() else epochs

    def manifest(self) -> dict[str, Any]:
        """Return how the run began. Raises RunDirectoryError if ``manifest.json`` is missing or damaged."""
        return read_record(self.path / "manifest.json", Manifest)

    def replay(self, stage: int) -> Path:
        """Return the file of the replayed examples of ``stage``."""
        return self.path / "replay" / f"stage-{stage}.parquet"

    def teachers(self) -> Path:
        """Return the run directory of this run's task teachers."""
        return self.path / "teachers"

    def answers(self, item: str) -> Path:
        """Return the file of a task teacher's answers to the training examples of an item of the stream."""
        return self.path / "distil" / f"{file_part(item)}.parquet"

    def test_examples(self, task: str) -> Path:
        """Return the file of the test examples of a task."""
        return self.path / "tests" / f"{file_part(task)}.parquet"

    def stored_examples(self, item: str) -> Path:
        """Return the file of the training examples of an item that the method keeps."""
        return self.path / "stored" / f"{file_part(item)}.parquet"

    def memory_examples(self, item: str) -> Path:
        """Return the file of the training examples of an item that can be shown before questions."""
        return self.path / "memory" / f"{file_part(item)}.parquet"

    def log(self, name: str) -> Path:
        """Return the path of a log file."""
        return self.path / "logs" / f"{name}.log"

    def guard(self, stage: int, student: int) -> Path:
        """Return the file of the state of a student's guard after ``stage``."""
        return self.path / "guards" / f"stage-{stage}.student-{student}.safetensors"

    def steps(self, stage: int, epoch: int) -> Path:
        """Return the file of the figures of an epoch's steps."""
        return self.path / "steps" / f"stage-{stage}.epoch-{epoch}.parquet"

    def scores(self) -> dict[Cell, dict[str, Any]]:
        """Read all scores. Raises RunDirectoryError if one of them is damaged."""
        found: dict[Cell, dict[str, Any]] = {}
        for path, cell in self.score_files():
            record = read_record(path, Score)
            found[replace(cell, task=str(record.get("task", cell.task)))] = record
        return found

    def score_files(self) -> Iterator[tuple[Path, Cell]]:
        """Yield the files of all scores. The task is that of the file's name, which may be shortened."""
        for path in matching(self.path / "scores", "stage-*.json"):
            match = _CELL.fullmatch(path.name)
            if match:
                student = TOGETHER if match[3] is None else int(match[3])
                yield path, Cell(int(match[1]), int(match[2]), student, unquote(match[4]))

    def score(self, cell: Cell) -> dict[str, Any]:
        """Read one score; empty if there is none. Raises RunDirectoryError if it is damaged."""
        path = self.path / "scores" / f"{cell.name}.json"
        return read_record(path, Score) if path.is_file() else {}

    def step_figures(self) -> Sequence[dict[str, Any]]:
        """Read the figures of all steps and students, in order of stage, step and student.

        Those in a damaged file are left out, with a warning: nothing that is learned depends on them.
        """
        rows = [row for table in self.step_tables(_STEP, optional=None) for row in table.to_pylist()]
        return sorted(rows, key=lambda row: (row["stage"], row["step"], row["student"]))

    def step_tables(
        self, columns: Sequence[str], optional: Sequence[str] | None = (), tell: Callable[[str], None] = _log.warning
    ) -> Iterator[pa.Table]:
        """Yield these columns of the figures of steps, a table for each epoch. ``optional``: see ``read_table``.

        A damaged file is left out, with a warning, which ``tell`` is given.
        """
        for path in matching(self.path / "steps", "*.parquet"):
            try:
                table = read_table(path, columns, optional)
            except DamagedError as error:
                tell(f"{str(error).rstrip('.')}. Its steps are left out.")
                continue
            if table is not None:
                yield table

    def epoch_figures(self, stage: int, epoch: int) -> list[dict[str, Any]]:
        """Read the figures of the steps of an epoch; none if there are none. Raises RunDirectoryError if damaged."""
        table = read_table(self.steps(stage, epoch), _STEP, optional=None)
        return [] if table is None else table.to_pylist()

    def num_steps(self, stages: int, tell: Callable[[str], None] = _log.warning) -> int:
        """Return the number of steps of the first ``stages`` stages, each counted once for all its students.

        A damaged file is left out, with a warning, which ``tell`` is given.
        """
        found = 0
        for table in self.step_tables(_STEP, tell=tell):
            rows = table.select(["stage", "step"]).to_pydict()
            found += len({step for stage, step in zip(*rows.values(), strict=True) if stage < stages})
        return found

    def has_finished(self) -> bool:
        """Return whether the run has finished. Its command may have ended before it wrote ``report.md``."""
        return (self.path / "summary.json").is_file()

    def is_complete(self) -> bool:
        """Return whether the run has finished and nothing is left to do."""
        return self.has_finished() and (self.path / "report.md").is_file()

    def summary(self) -> dict[str, Any]:
        """Read the result of a finished run. Raises RunDirectoryError if the run has not finished."""
        if not self.has_finished():
            raise RunDirectoryError(
                f"{self.path}: has no summary.json: the run did not finish. Resume it: ray-l4 resume {self.path}"
            )
        return read_json(self.path / "summary.json")


def refuse_taken(path: Path) -> None:
    """Raise RunDirectoryError if ``path`` cannot become a run directory: it exists and is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise _taken(path)


def _taken(path: Path) -> RunDirectoryError:
    if not path.is_dir():
        return RunDirectoryError(f"{path}: is a file. Choose another --run-dir.")
    or_resume = f", or resume that run: ray-l4 resume {path}" if (path / "config.yaml").is_file() else ""
    return RunDirectoryError(f"{path}: already exists and is not empty. Choose another --run-dir{or_resume}.")


def why_no_run(path: Path) -> str:
    """Return why ``path`` is no run directory, and the run that it is a part of, if any."""
    if not path.exists():
        return "no such folder"
    around = next((parent for parent in path.absolute().parents if (parent / "config.yaml").is_file()), None)
    return "no config.yaml in it" if around is None else f"it is a part of the run {around}: give that"


class _Record(dict[str, Any]):
    """The object in a JSON file of a run: a key that it lacks is damage, not a mistake of the program."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise RunDirectoryError(
            f"{self._path}: damaged, or written by another version: it has no {key!r}. Restore it from a copy."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file of a run, without its format and checksum.

    Raises RunDirectoryError if it cannot be read or its checksum is wrong, and when a key that it lacks is looked up.
    """
    return _Record(path, unsealed(path, parsed(path)))


def read_record(path: Path, model: type[Record]) -> dict[str, Any]:
    """Read a JSON file of a run as ``read_json`` does; raises RunDirectoryError also if a value has the wrong type."""
    value = read_json(path)
    check_record(path, value, model)
    return value
