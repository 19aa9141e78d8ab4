"""The tasks of a run's inbox: those that the run knows, and new ones, each a folder that may have a ``task.yaml``.

``task.yaml`` has keys of ``TaskConfig``: ``metric`` (``em`` if it names none), ``question`` and ``columns``, which
describe the files beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ray_l4.config.document import read_document
from ray_l4.config.experiment import Columns, ExperimentConfig, Splits, StageSettings, TaskConfig
from ray_l4.config.loading import validate
from ray_l4.config.strict_yaml import dump
from ray_l4.config.text import check_name, same_name, shown
from ray_l4.errors import ConfigError, RayL4Error, RunDirectoryError, nearest
from ray_l4.metrics.registry import METRICS
from ray_l4.store.atomic import write_text
from ray_l4.store.inbox.inbox import holding
from ray_l4.store.inbox.places import TASK_FILE, task_folder, task_folders
from ray_l4.store.inbox.record import Assignment
from ray_l4.store.names import LONGEST
from ray_l4.store.run_directory import RunDirectory

DEFAULT_METRIC = "em"
_KEYS = ("metric", "question", "columns")


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
    tasks = {name: InboxTask(known[name], False, tuple(folders.get(name, ()))) for name in experiment.tasks}
    problems = []
    for name, own in folders.items():
        if name not in known:
            try:
                tasks[name] = InboxTask(_new_task(name, own, known), True, tuple(own))
            except RayL4Error as error:
                problems.append(str(error))
    return InboxTasks(tasks, tuple(problems))


def add_task(
    run: RunDirectory, experiment: ExperimentConfig, name: str, metric: str | None = None, question: str | None = None
) -> bool:
    """Begin a new task in the inbox. Returns False if it is there already, with the same settings.

    Raises:
        ConfigError: the name or the metric is unfit, or the task is there with other settings.
        RunDirectoryError: the storage refuses the file.
    """
    values = {key: value for key, value in (("metric", metric or DEFAULT_METRIC), ("question", question)) if value}
    _check_new(name, values["metric"], [item.name for item in experiment.stream])
    with holding(run.path):
        found = inbox_tasks(run, experiment).tasks.get(name)
        if found is not None:
            if (found.config.metric, found.config.question) == (values["metric"], question or None):
                return False
            raise ConfigError(f"there is a task {name!r} with other settings already; choose another name.")
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


def _new_task(name: str, folders: list[Path], known: Mapping[str, TaskConfig]) -> TaskConfig:
    """Return the settings of a task that the run does not know. Raises ConfigError if they are wrong."""
    files = [path for folder in folders if (path := folder / TASK_FILE).is_file()]
    if len(files) > 1:
        raise ConfigError(f"{files[0]} and {files[1]} both describe the task {name!r}; keep one of them.")
    metric, config = DEFAULT_METRIC, TaskConfig(name="new", metric=DEFAULT_METRIC)
    if files:
        document = read_document(files[0])
        unfit = next((key for key in document.tree if key in TaskConfig.model_fields and key not in _KEYS), None)
        if unfit is not None:
            raise ConfigError(
                f"{document.where((unfit,))}: {unfit}: not a key of {TASK_FILE}, whose task is named by its folder and "
                f"learned from the files in it; expected {', '.join(_KEYS)}."
            )
        document.set(("name",), "new")  # the true one is checked below, where a message can name the folder
        config = validate(TaskConfig, document)
        metric = config.metric or DEFAULT_METRIC
    try:
        _check_new(name, metric, list(known))
    except ConfigError as error:
        raise ConfigError(f"{(files or folders)[0]}: {error}") from None
    return config.model_copy(update={"name": name, "metric": metric})


def _check_new(name: str, metric: str, known: list[str]) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if name.startswith(".") or len(quote(name, safe="")) > LONGEST:
        raise ConfigError(f"a task named {shown(name)} can have no folder: it is too long, or begins with a dot.")
    twin = next((other for other in known if same_name(other) == same_name(name)), None)
    if twin is not None:
        raise ConfigError(f"the run has a task {twin!r} already; give examples of it, or choose another name.")
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}. {nearest(metric, METRICS)}")
    if METRICS[metric].needs_meta:
        others = ", ".join(name for name, other in METRICS.items() if not other.needs_meta)
        raise ConfigError(f"metric {metric!r} needs more than texts, which the inbox does not hold; expected {others}.")
