"""Which models a command inspects, and with which settings: those of the run they belong to, unless told otherwise.

Imports no PyTorch, so that a mistake is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import load_experiment
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError, ModelError, RunDirectoryError, nearest
from ray_l4.methods import all_models, get_method, stages_of
from ray_l4.methods.copying import changed
from ray_l4.setup.named_model import hub_note, run_or_model
from ray_l4.setup.other_settings import default_experiment, with_model, with_sections
from ray_l4.store.checkpoints import Checkpoint, Wanted, checkpoint_at, is_model, last_checkpoints
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.tasks.registry import TASKS
from ray_l4.text.added_tokens import TASK_TOKENS_FILE

if TYPE_CHECKING:
    from ray_l4.text.memory import TextMemory


@dataclass(frozen=True)
class Settings:
    """What the command line says. Everything that it does not say comes from the run's ``config.yaml``."""

    wanted: Wanted = field(default_factory=Wanted)
    """Which checkpoints of a run directory."""
    tasks: Sequence[str] = ()
    """Names of the tasks; if there are none, those that the run scores the checkpoint on."""
    task: Mapping[str, object] = field(default_factory=dict)
    """Keys of the one task's ``TaskConfig`` and their values."""
    experiment: Path | None = None
    """Experiment file to use instead of the run's ``config.yaml``."""
    overrides: Sequence[str] = ()
    """Overrides in the form ``KEY=VALUE``."""
    sections: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Section of the experiment -> its keys and their values."""
    seed: int | None = None
    """The run seed."""
    trusts_code: bool = False
    """Whether code that comes with a model may run. For a model outside a run, it then does."""


@dataclass(frozen=True)
class Inspected:
    """A model, and the experiment whose settings apply to it."""

    name: str
    """Name for people: which model, student and stage."""
    experiment: ExperimentConfig
    tasks: tuple[str, ...]
    """The tasks that the run scores it on, or that its tokeniser knows."""
    student: int
    folder: Path | None
    """Folder of its weights and tokeniser; None for the model that a student of the experiment begins with."""
    checkpoint: Checkpoint | None = None
    """Its place in a run."""
    assumed: bool = False
    """Whether the settings are defaults, for lack of a run and of an experiment file."""

    def task(self, name: str, settings: Settings) -> TaskConfig:
        """Return the settings of a task. Raises ConfigError, which names the known tasks, if it is none of them."""
        own = self.experiment.of_tasks
        usual = own.get(name, TaskConfig(name=name, train="all"))
        if "path" in settings.task:  # other data, of another size
            usual = changed(usual, test="all", dataset=None)
        task: TaskConfig = changed(usual, **settings.task)
        if task.path is None and task.dataset is None and name not in (TASKS if self.assumed else {**own, **TASKS}):
            known = [*self.tasks, *TASKS]
            raise unknown_task(name, self, f" For other data, give its folder (--path). {nearest(name, known)}")
        return task

    @cached_property
    def memory(self) -> TextMemory | None:
        """The examples that the model is shown before questions; None without ``memory.retrieve``.

        They are read once. Raises the errors of ``memory_of``.
        """
        from ray_l4.setup.memories import memory_of  # loads numpy

        return memory_of(self.experiment, self.checkpoint, self.name)

    @property
    def hub_note(self) -> str:
        """A sentence for messages, with a space before it, if the model is looked for on the hub; empty if not."""
        return hub_note(self.experiment.model.name) if self.folder is None else ""


def unknown_task(name: str, found: Inspected, advice: str) -> ConfigError:
    """Return the error about a task that a model does not have; ``advice`` begins with a space."""
    known = found.tasks if found.assumed else _stream(found.experiment)
    return ConfigError(
        f"--task {name}: {found.name} has no such task; its tasks: {', '.join(known) or 'none'}."
        f"{found.hub_note}{advice}"
    )


def inspected(model: str | None, settings: Settings) -> list[Inspected]:
    """Return the models that ``model`` names, each with its settings.

    ``model``: a run directory (every student's last checkpoint), a checkpoint in one or anywhere else, the folder or
    hub name of a model without task tokens, to which they are added as a run does; None for the experiment file's own
    model. Raises ConfigError, ModelError or RunDirectoryError if there is no such model, or a setting is wrong.
    """
    found = _found(model, settings)
    for each in found:
        _check_wanted(each, settings.wanted)
        check_trust(each.experiment, each.name, settings.trusts_code)
    return found


def check_trust(experiment: ExperimentConfig, name: str, trusts_code: bool) -> None:
    """Raise ModelError if code of a model would run only because the experiment, of somebody else perhaps, says so.

    ``trusts_code``: what the command line says. ``name``: that of the model or run, for the message.
    """
    if not trusts_code and any(model.trust_custom_code for model in all_models(experiment)):
        raise ModelError(
            f"{name}: its settings (model.trust_custom_code: true) let Python code that comes with the model run, with "
            "all rights of your account. If you trust the authors of the code, give --trust-custom-code."
        )


def _found(model: str | None, settings: Settings) -> list[Inspected]:
    if model is None:
        return [_untouched(None, settings)]
    folder = run_or_model(model)
    if folder is None:
        return [_untouched(model, settings)]
    if not is_model(folder):
        run = RunDirectory.open(folder)
        independent = get_method(run.experiment().method).kind.independent
        return [_of_run(found, settings) for found in last_checkpoints(run, settings.wanted, independent)]
    checkpoint = checkpoint_at(folder)
    if checkpoint is not None:
        return [_of_run(checkpoint, settings)]
    if (folder / TASK_TOKENS_FILE).is_file():
        return [_elsewhere(folder, settings)]
    return [_untouched(str(folder), settings)]


def _check_wanted(found: Inspected, wanted: Wanted) -> None:
    """Raise an error if options select another checkpoint than the one that is named, or one of a model without any."""
    if found.checkpoint is not None:
        if not wanted.includes(found.checkpoint):
            place = Wanted(found.checkpoint.stage, found.checkpoint.epoch, found.checkpoint.student)
            raise ConfigError(
                f"{found.folder}: is the checkpoint of {place}, but {wanted} is asked for. Leave out --stage, --epoch "
                f"and --student, or give the run: {found.checkpoint.run.path}"
            )
    elif wanted.stage is not None or wanted.epoch is not None:
        raise ConfigError(
            f"{found.name}: belongs to no run, so it has no stages and epochs. Leave out --stage and --epoch, or give "
            "a run directory."
        )


def one_inspected(model: str, settings: Settings) -> tuple[Inspected, str]:
    """Return the one model to work with and the one task: of a run directory, the first student that is scored on it.

    Raises ConfigError if the task is not named although there are several, or unknown, and errors as ``inspected``.
    """
    found = inspected(model, settings)
    known = list(dict.fromkeys(name for each in found for name in each.tasks))
    names = list(settings.tasks) or known
    if len(names) != 1:
        raise ConfigError(
            f"Name a task (--task). {found[0].name} has {', '.join(known) if known else 'none of its own'}."
            f"{found[0].hub_note}"
        )
    if known and names[0] not in known:
        raise unknown_task(names[0], found[0], f" {nearest(names[0], known)}")
    return next((each for each in found if names[0] in each.tasks), found[0]), names[0]


def _of_run(found: Checkpoint, settings: Settings) -> Inspected:
    path = settings.experiment or found.run.path / "config.yaml"
    experiment = with_sections(load_experiment(path, settings.overrides), settings.sections, settings.seed)
    stages = stages_of(experiment)
    if found.stage >= len(stages):
        raise RunDirectoryError(
            f"{found.folder}: a checkpoint of stage {found.stage}, but {path} has {len(stages)} stages. Give the "
            "experiment file of this run (--experiment)."
        )
    after = f"after {stages[found.stage].name}, epoch {found.epoch}"
    name = f"{found.run.path}: student {found.student} {after}"
    return Inspected(name, experiment, stages[found.stage].scored, found.student, found.folder, found)


def _elsewhere(folder: Path, settings: Settings) -> Inspected:
    known = tuple(read_json(folder / TASK_TOKENS_FILE).get("gen", {}))
    student = settings.wanted.student or 0
    if settings.experiment is not None:
        experiment = _changed(load_experiment(settings.experiment, settings.overrides), settings)
        return Inspected(str(folder), experiment, _stream(experiment), student, folder)
    return Inspected(str(folder), _defaults(str(folder), settings), known, student, folder, assumed=True)


def _untouched(model: str | None, settings: Settings) -> Inspected:
    student = settings.wanted.student or 0
    if settings.experiment is None:
        if model is None:
            raise ConfigError(
                "Name a model (a run directory, a checkpoint, a model's folder or hub name), or --experiment."
            )
        experiment = _defaults(model, settings)
        return Inspected(f"{model}, untouched", experiment, (), student, None, assumed=True)
    experiment = load_experiment(settings.experiment, settings.overrides)
    if model is not None:
        experiment = with_model(experiment, model)
    experiment = _changed(experiment, settings)
    name = model or experiment.model.name or f"{settings.experiment}, from scratch"
    return Inspected(f"{name}, untouched", experiment, _stream(experiment), student, None)


def _defaults(model: str, settings: Settings) -> ExperimentConfig:
    return _changed(default_experiment(model, settings.tasks, settings.overrides), settings)


def _changed(experiment: ExperimentConfig, settings: Settings) -> ExperimentConfig:
    model = {**settings.sections.get("model", {}), **({"trust_custom_code": True} if settings.trusts_code else {})}
    return with_sections(experiment, {**settings.sections, "model": model}, settings.seed)


def _stream(experiment: ExperimentConfig) -> tuple[str, ...]:
    return experiment.tasks
