"""What can be wrong with an experiment as settings and files show it: checked by a run, a dry run and a sweep alike."""

from __future__ import annotations

from pathlib import Path

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError, ModelError
from ray_l4.learner.model_config import longest_sequence
from ray_l4.methods import TEACHER_METHOD, all_models, get_method, stages_of
from ray_l4.setup.exchange_check import check_exchange
from ray_l4.setup.peer_teachers import finished_peers
from ray_l4.setup.rank_check import check_rank_settings
from ray_l4.store.checkpoints import checkpoints, is_model
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.general_file import check_general_file, read_general_text
from ray_l4.tasks.registry import check_files, load, metric_of
from ray_l4.tasks.rows import Split
from ray_l4.tasks.validation import check_validation, with_validation
from ray_l4.text.added_tokens import task_token


def check_settings(
    experiment: ExperimentConfig, cluster: ClusterConfig, learned: int = 0, *, keeps_general: bool = False
) -> None:
    """Check all that needs neither raw data nor models of the hub.

    ``learned``: number of items of the stream that were learned earlier: their data need not be there.
    ``keeps_general``: whether the run has kept the general text. Raises:
        ConfigError, DataError, ModelError, RunDirectoryError: the run would be refused later.
    """
    check_exchange(experiment, cluster)
    left = list(experiment.items)[learned:]
    for stage, own in enumerate(stages_of(experiment)):
        if not set(own.items).intersection(left):
            continue
        size = experiment.at_stage(stage).training.batch_size
        check_rank_settings(experiment, cluster, None if size == "auto" else size)
    alone = len(experiment.tasks) == 1
    check_validation(experiment.stream[learned:], experiment.evaluation.validation, alone=alone)
    for name, item in list(experiment.items.items())[learned:]:
        metric_of(item)
        task_token(item.name)
        if item.is_own:
            check_files(item, experiment.data, _splits(name, item))
    general = experiment.evaluation.general
    if general is not None and (general.exists() or not keeps_general):
        check_general_file(general)
    for model in all_models(experiment):
        if model.from_scratch is not None:
            longest_sequence(model.from_scratch.positions, model.max_length)
        elif Path(str(model.name)).is_absolute():
            _check_model_folder(Path(str(model.name)))
    finished_teachers(experiment)
    finished_peers(experiment)


def _check_model_folder(folder: Path) -> None:
    """Raise ModelError unless ``folder`` holds a model; of a run directory, say which of its folders do."""
    if is_model(folder):
        return
    if folder.is_file():
        raise ModelError(f"model.name: {folder} is a file; expected the folder of a model")
    if not folder.is_dir():
        raise ModelError(f"model.name: no folder {folder}; expected a model's folder, or a name on the hub")
    if (folder / "config.yaml").is_file():
        run = RunDirectory(folder)
        inside = [found.folder for found in checkpoints(run)][-1:]
        such = f", such as {inside[0]}" if inside else ""
        raise ModelError(f"model.name: {folder} is a run directory; name one of its checkpoints{such}")
    raise ModelError(f"model.name: {folder} holds no model; expected a folder with config.json and weights")


def check_raw_data(experiment: ExperimentConfig, learned: int = 0) -> None:
    """Check that the raw files of built-in tasks can be looked for. Raises ConfigError or DataError as a run would.

    ``learned``: as for ``check_settings``.
    """
    for name, item in list(experiment.items.items())[learned:]:
        if not item.is_own:
            check_files(item, experiment.data, _splits(name, item))


def _splits(name: str, item: TaskConfig) -> tuple[Split, ...]:
    """Return the splits that an item of the stream needs: a task that comes back has its test set already."""
    return ("train", "test") if name == item.name else ("train",)


def check_own_data(experiment: ExperimentConfig, learned: int = 0) -> None:
    """Read the user's own files, validation examples included. Raises ConfigError or DataError as a run would.

    ``learned``: as for ``check_settings``.
    """
    asked, alone = experiment.evaluation.validation, len(experiment.tasks) == 1
    if experiment.evaluation.general is not None:
        read_general_text(experiment.evaluation.general, experiment.evaluation.general_tokens)
    for name, item in list(experiment.items.items())[learned:]:
        if item.path is not None:
            for split in _splits(name, item):
                examples = load(item, split, experiment.data)
                if split == "train" and asked is not None:
                    with_validation(item, examples, asked, experiment.data, alone=alone)


def finished_teachers(experiment: ExperimentConfig) -> RunDirectory | None:
    """Return the run that ``teachers.run`` names; None if none is named or needed.

    Raises ConfigError or RunDirectoryError if that run has not finished, or has another method or model.
    """
    named = experiment.teachers.run
    if named is None or not get_method(experiment.method).has_task_teachers:
        return None
    teachers = RunDirectory.open(named)
    teachers.summary()  # raises if the run has not finished
    found = teachers.experiment()
    if found.method != TEACHER_METHOD:
        raise ConfigError(f"teachers.run: {teachers.path} is a run of {found.method}; expected {TEACHER_METHOD}")
    if found.model != experiment.model:
        raise ConfigError(f"teachers.run: {teachers.path} trained a different model from this experiment's")
    return teachers
