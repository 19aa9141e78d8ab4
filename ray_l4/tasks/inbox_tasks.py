"""The tasks of a run's inbox: those that the run knows, and new ones, each a folder that may have a ``task.yaml``.

``task.yaml`` has keys of ``TaskConfig``: ``metric`` (``em`` if it names none), ``question`` and ``columns``, which
describe the files beside it. Question and columns count for as long as it is there; the metric is that of the run once
the run knows the task.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ray_l4.config.document import read_document
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import validate
from ray_l4.config.stream import Columns, Splits, StageSettings, TaskConfig
from ray_l4.config.strict_yaml import dump
from ray_l4.config.text import check_name, same_name, shown
from ray_l4.errors import ConfigError, RayL4Error, RunDirectoryError, nearest
from ray_l4.metrics.registry import METRICS
from ray_l4.store.atomic import write_text
from ray_l4.store.inbox.inbox import holding
from ray_l4.store.inbox.places import TASK_FILE, inbox_of, task_folder, task_folders
from ray_l4.store.inbox.record import Assignment
from ray_l4.store.names import LONGEST
from ray_l4.store.run_directory import RunDirectory

DEFAULT_METRIC = "em"
MOST_NEW = 100
"""New tasks that may be begun over HTTP as long as none of them is learned."""
_KEYS = ("metric", "question", "columns")
_STAGE_NAME = re.compile(r".* \(\d+\)", re.DOTALL)
"""Names that stages of tasks that come back have, as in ``mini.woz (2)``."""


@dataclass(frozen=True)
class InboxTask:
    """A task that examples may be given for."""

    config: TaskConfig
    """Its metric, and how files of it are read."""
    is_new: bool
    """Whether it is in no stage of the run yet."""
    folders: tuple[Path, ...] = ()
    """Its folders in the inbox."""


@dataclass(frozen=True)
class InboxTasks:
    """All tasks that examples may be given for, and what is wrong with folders of others."""

    tasks: Mapping[str, InboxTask] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def inbox_tasks(run: RunDirectory, experiment: ExperimentConfig) -> InboxTasks:
    """Return the tasks of a run and of its inbox, those of the run first. A folder that is wrong is a problem."""
    known = experiment.of_tasks
    folders = task_folders(run.path, known)
    tasks, problems = {}, []
    for name in dict.fromkeys([*experiment.tasks, *folders]):
        own = tuple(folders.get(name, ()))
        try:
            config = _described(known[name], own) if name in known else _new_task(name, own, known)
            tasks[name] = InboxTask(config, name not in known, own)
        except RayL4Error as error:
            problems.append(str(error))
            if name in known:  # its files wait until it is known how to read them
                tasks[name] = InboxTask(known[name], False)
    return InboxTasks(tasks, tuple(problems))


def add_task(
    run: RunDirectory, experiment: ExperimentConfig, name: str, metric: str | None = None, question: str | None = None
) -> bool:
    """Begin a new task in the inbox. Returns False if it is there already, with the same settings.

    Raises:
        ConfigError: the name or the metric is unfit, the task is there with other settings, or too many are there.
        RunDirectoryError: the storage refuses the file.
    """
    values = {key: value for key, value in (("metric", metric or DEFAULT_METRIC), ("question", question)) if value}
    _check_new(name, values["metric"], [item.name for item in experiment.stream])
    with holding(run.path):
        tasks = inbox_tasks(run, experiment).tasks
        found = tasks.get(name)
        if found is not None:
            if (found.config.metric, found.config.question) == (values["metric"], question or None):
                return False
            raise ConfigError(f"there is a task {name!r} with other settings already; choose another name.")
        if sum(task.is_new for task in tasks.values()) >= MOST_NEW:
            raise ConfigError(
                f"{MOST_NEW} new tasks wait in the inbox, as many as may; give examples of them, so that they are "
                f"learned, or remove folders of {inbox_of(run.path)} that nobody needs."
            )
        write_text(task_folder(run.path, name) / TASK_FILE, dump(values))
    return True


def stage_task(run: RunDirectory, experiment: ExperimentConfig, assignment: Assignment) -> TaskConfig:
    """Return the task by which a run is extended to learn an assignment.

    Raises:
        ConfigError: the task's ``task.yaml`` is wrong.
        RunDirectoryError: the task is neither one of the run nor has a folder in the inbox.
    """
    found = inbox_tasks(run, experiment)
    if assignment.task not in found.tasks:
        why = "\n".join(found.problems) or f"no folder of the inbox is that of the task {assignment.task!r}"
        raise RunDirectoryError(f"{run.path}: cannot learn assignment {assignment.number} of the inbox: {why}")
    changes = {
        "path": assignment.folder(run.path).absolute(),
        "dataset": None,
        "columns": Columns(),
        "splits": Splits(),
        "question": None,
        "train": "all",
        "test": "all",
        "settings": StageSettings(),
    }
    return found.tasks[assignment.task].config.model_copy(update=changes)


def _described(known: TaskConfig, folders: Sequence[Path]) -> TaskConfig:
    """Return a task of the run, whose files are read as its ``task.yaml`` says. Raises ConfigError if that is wrong."""
    read = _task_file(known.name, folders)
    given = set() if read is None else read.model_fields_set & {"question", "columns"}
    return known.model_copy(update={key: getattr(read, key) for key in given})


def _new_task(name: str, folders: Sequence[Path], known: Collection[str]) -> TaskConfig:
    """Return the settings of a task that the run does not know. Raises ConfigError if they are wrong."""
    read = _task_file(name, folders) or TaskConfig(name="new", metric=DEFAULT_METRIC)
    metric = read.metric or DEFAULT_METRIC
    try:
        _check_new(name, metric, known)
    except ConfigError as error:
        raise ConfigError(f"{(_task_files(folders) or folders)[0]}: {error}") from None
    return read.model_copy(update={"name": name, "metric": metric})


def _task_files(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders if (path := folder / TASK_FILE).is_file()]


def _task_file(name: str, folders: Sequence[Path]) -> TaskConfig | None:
    """Return what the ``task.yaml`` of a task says, under another name; None if there is none.

    Raises ConfigError if there are several, or if it is wrong.
    """
    files = _task_files(folders)
    if not files:
        return None
    if len(files) > 1:
        raise ConfigError(f"{files[0]} and {files[1]} both describe the task {name!r}; keep one of them.")
    document = read_document(files[0])
    unfit = next((key for key in document.tree if key in TaskConfig.model_fields and key not in _KEYS), None)
    if unfit is not None:
        raise ConfigError(
            f"{document.where((unfit,))}: {unfit}: not a key of {TASK_FILE}, whose task is named by its folder and "
            f"learned from the files in it; expected {', '.join(_KEYS)}."
        )
    document.set(("name",), "new")  # the true one is checked elsewhere, where a message can name the folder
    return validate(TaskConfig, document)


def _check_new(name: str, metric: str, known: Collection[str]) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if name.startswith(".") or len(quote(name, safe="")) > LONGEST:
        raise ConfigError(f"a task named {shown(name)} can have no folder: it is too long, or begins with a dot.")
    if _STAGE_NAME.fullmatch(name):
        raise ConfigError(
            f"a new task cannot be named {shown(name)}: a number in brackets at the end names a stage of a task that "
            "comes back. To give examples of that task, leave the number out; otherwise choose another name."
        )
    twin = next((other for other in known if same_name(other) == same_name(name)), None)
    if twin is not None:
        raise ConfigError(f"the run has a task {twin!r} already; give examples of it, or choose another name.")
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}. {nearest(metric, METRICS)}")
    if METRICS[metric].needs_meta:
        others = ", ".join(name for name, other in METRICS.items() if not other.needs_meta)
        raise ConfigError(f"metric {metric!r} needs more than texts, which the inbox does not hold; expected {others}.")
