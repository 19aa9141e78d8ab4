"""What can be wrong with an experiment as settings and files show it: checked by a run, a dry run and a sweep alike."""

from __future__ import annotations

from pathlib import Path

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, ModelError
from ray_l4.learner.model_config import longest_sequence
from ray_l4.methods import TEACHER_METHOD, all_models, get_method
from ray_l4.setup.exchange_check import check_exchange
from ray_l4.setup.rank_check import check_rank_settings
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.registry import check_files, metric_of, reads_own_data
from ray_l4.tasks.validation import check_validation


def check_settings(experiment: ExperimentConfig, cluster: ClusterConfig) -> None:
    """Check all that needs neither raw data nor models of the hub.

    Raises:
        ConfigError, DataError, ModelError, RunDirectoryError: the run would be refused later.
    """
    check_exchange(experiment, cluster)
    size = experiment.training.batch_size
    check_rank_settings(experiment, cluster, None if size == "auto" else size)
    check_validation(experiment.stream, experiment.evaluation.validation)
    for task in experiment.stream:
        metric_of(task)
        if reads_own_data(task):
            check_files(task, experiment.data)
    for model in all_models(experiment):
        if model.from_scratch is not None:
            longest_sequence(model.from_scratch.positions, model.max_length)
        elif Path(str(model.name)).is_absolute() and not Path(str(model.name)).is_dir():
            raise ModelError(f"model.name: no folder {model.name}; expected a model's folder, or a name on the hub")
    finished_teachers(experiment)


def check_raw_data(experiment: ExperimentConfig) -> None:
    """Check that the raw files of built-in tasks can be looked for. Raises ConfigError or DataError as a run would."""
    for task in experiment.stream:
        if not reads_own_data(task):
            check_files(task, experiment.data)


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
