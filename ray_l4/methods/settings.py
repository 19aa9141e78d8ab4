"""What an experiment and its method come to together: students, graph, stages, and values that the method sets."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.methods.table import get_method
from ray_l4.methods.topology import Topology
from ray_l4.seeds import derive


def num_students(experiment: ExperimentConfig) -> int:
    """Number of students: the experiment's own, or its method's. Raises ConfigError for an unknown method."""
    return experiment.peers.count or get_method(experiment.method).peers


def graph_of(experiment: ExperimentConfig) -> Topology:
    """Who learns from whom in an experiment. Raises ConfigError for an unknown method."""
    return get_method(experiment.method).graph(num_students(experiment))


UNION = "all"
"""Name of the one stage of a method that learns all tasks at once."""


def stage_names(experiment: ExperimentConfig) -> list[str]:
    """What is learned between two rows of the score matrix: a task each, or all at once."""
    union = get_method(experiment.method).stages == "union"
    return [UNION] if union else [task.name for task in experiment.stream]


def resolved(experiment: ExperimentConfig) -> ExperimentConfig:
    """The experiment with its method's settings where it does not set them itself.

    A setting of the method that a model from scratch is too small for (``model.max_length``) is cut to its size.
    Raises ConfigError for an unknown method, or for choices that exclude each other.
    """
    for key, value in get_method(experiment.method).settings:
        group_name, name = key.split(".")
        group: BaseModel = getattr(experiment, group_name)
        if name in group.model_fields_set:
            continue
        scratch = experiment.model.from_scratch
        if key == "model.max_length" and scratch is not None:
            value = min(int(str(value)), scratch.positions)
        experiment = _with(experiment, **{group_name: _with(group, **{name: value})})
    _refuse_contradictions(experiment)
    return experiment


TEACHER_METHOD = "single-qa-lm"
"""What trains a teacher: its task alone, both heads, from the start (SPEC 6.1)."""


def teachers_of(experiment: ExperimentConfig) -> ExperimentConfig:
    """The experiment that trains the teachers of ``experiment``: one model per task of its stream."""
    return _with(
        experiment,
        method=TEACHER_METHOD,
        variant=None,
        seed=derive(experiment.seed, "teachers"),
        peers=_with(experiment.peers, count=1),
        training=_with(experiment.training, epochs=experiment.teachers.epochs or experiment.training.epochs),
        evaluation=_with(experiment.evaluation, when="stage"),
    )


def _with(record: Any, **values: object) -> Any:
    """A copy with other values, checked like a new one, that still knows which values were set."""
    return type(record).model_validate({name: getattr(record, name) for name in record.model_fields_set} | values)


def _refuse_contradictions(experiment: ExperimentConfig) -> None:
    if get_method(experiment.method).stages == "separate" and num_students(experiment) > 1:
        raise ConfigError(
            f"peers.count: {experiment.method} trains one model a task, as many at a time as there is room for; "
            f"expected 1 student, not {num_students(experiment)}. Use another seed for another model."
        )
    if get_method(experiment.method).teacher == "previous" and num_students(experiment) > 1:
        raise ConfigError(
            f"peers.count: {experiment.method} learns from its own earlier self, and there is one teacher; expected 1 "
            f"student, not {num_students(experiment)}. Use another seed for another student."
        )
    if experiment.replay.generator == "own" and num_students(experiment) > 1:
        if experiment.distillation.examples == "all":
            raise ConfigError(
                "replay.generator: own and distillation.examples: all exclude each other: students can only compare "
                "predictions on examples that both have. Share the replay (generator: first or pool)."
            )
        if experiment.training.batch_budget is not None:
            raise ConfigError(
                "replay.generator: own and training.batch_budget exclude each other: batches would differ between "
                "the students. Leave out the budget, or share the replay (generator: first or pool)."
            )
