"""Experiments combined with their methods: students, topology, stages, and settings that the method changes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import StageSettings
from ray_l4.errors import ConfigError
from ray_l4.methods.copying import changed
from ray_l4.methods.edges_file import read_edges
from ray_l4.methods.peers import completed_peers, num_students, num_teachers
from ray_l4.methods.stages import Stage
from ray_l4.methods.subspaces import with_subspaces
from ray_l4.methods.table import METHODS, get_method
from ray_l4.methods.topology import TOPOLOGIES, Topology, from_edges
from ray_l4.seeds import derive


def graph_of(experiment: ExperimentConfig) -> Topology:
    """Return the topology of an experiment: ``peers.topology`` if set, else that of its method.

    Raises ConfigError if the method is unknown or does not allow another topology, a topology file cannot be read, or
    an edge is invalid.
    """
    method, asked, count = get_method(experiment.method), experiment.peers.topology, num_students(experiment)
    if asked is None:
        return method.graph(count, num_teachers(experiment))
    if method.topology != "complete":
        mutual = ", ".join(name for name, row in METHODS.items() if row.topology == "complete")
        raise ConfigError(
            f"peers.topology: {method.name} has a fixed topology ({method.topology}); only methods whose students "
            f"teach each other allow another one. Remove the key, or choose one of these methods: {mutual}."
        )
    if isinstance(asked, str):
        return TOPOLOGIES[asked](count)
    if isinstance(asked, Path):
        file = read_edges(asked)
        return from_edges(count, file.edges, file.where)
    return from_edges(count, asked)


def graph_name(experiment: ExperimentConfig) -> str | list[list[int]]:
    """Return the name of an experiment's topology, or its edges if it has no name, for reports and records.

    Raises ConfigError as ``graph_of``.
    """
    asked, graph = experiment.peers.topology, graph_of(experiment)
    if asked is None:
        return get_method(experiment.method).topology
    return asked if isinstance(asked, str) else [list(edge) for edge in sorted(graph.edges)]


def stages_of(experiment: ExperimentConfig) -> list[Stage]:
    """Return the stages of an experiment: one for each item of the stream, or one if all tasks are learned at once."""
    return get_method(experiment.method).kind.stages([item.name for item in experiment.stream])


def resolved(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with its method's settings for all keys that it does not set itself.

    If the method's ``model.max_length`` exceeds the positions of a model from scratch, it is reduced to them. The edges
    of a topology file are read and stored in the result.
    Raises ConfigError for an unknown method or settings that exclude each other.
    """
    for key, value in get_method(experiment.method).settings:
        group_name, name = key.split(".")
        group: BaseModel = getattr(experiment, group_name)
        if name in group.model_fields_set:
            continue
        scratch = experiment.model.from_scratch
        if key == "model.max_length" and scratch is not None:
            value = min(int(str(value)), scratch.positions)
        experiment = changed(experiment, **{group_name: changed(group, **{name: value})})
    _refuse_contradictions(experiment)
    return with_subspaces(_with_own_peers(_with_whole_items(experiment)))


def _with_whole_items(experiment: ExperimentConfig) -> ExperimentConfig:
    """Write down what an item of a task that comes back has from the task's first one, so that config.yaml has it."""
    whole = list(experiment.items.values())
    return experiment if whole == experiment.stream else changed(experiment, stream=whole)


def _with_own_peers(experiment: ExperimentConfig) -> ExperimentConfig:
    """Replace a topology file by its edges and complete every peer's model, so that config.yaml is self-contained."""
    name, peers = graph_name(experiment), experiment.peers
    values: dict[str, object] = {}
    if isinstance(peers.topology, Path):
        values["topology"] = name
    if peers.each:
        values["each"] = completed_peers(experiment)
    return changed(experiment, peers=changed(peers, **values)) if values else experiment


TEACHER_METHOD = "single-qa-lm"
"""Method that trains task teachers: one task alone, both heads, from the start (REFERENCE.md#teachers)."""


def teacher_experiment(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment that trains the task teachers of ``experiment``, one per item of its stream.

    ``teachers.epochs`` holds for all of them, also where the stage of an item has epochs of its own.
    """
    stream, distillation = experiment.stream, experiment.distillation
    batches = "shared" if distillation.batches == "own" else distillation.batches
    if experiment.teachers.epochs is not None:
        stream = [item.model_copy(update={"settings": _without_epochs(item.settings)}) for item in stream]
    return changed(
        experiment,
        stream=stream,
        method=TEACHER_METHOD,
        variant=None,
        seed=derive(experiment.seed, "teachers"),
        peers=changed(experiment.peers, count=1, topology=None, each=[], on_peer_loss="restart", subset=1.0),
        distillation=changed(distillation, batches=batches, on_policy=0.0),
        training=changed(experiment.training, epochs=experiment.teachers.epochs or experiment.training.epochs),
        evaluation=changed(experiment.evaluation, when="stage", general=None),
    )


def _without_epochs(settings: StageSettings) -> StageSettings:
    return settings.model_copy(update={"training": settings.training.model_copy(update={"epochs": None})})


def _refuse_contradictions(experiment: ExperimentConfig) -> None:
    """Raise ConfigError if settings exclude each other or do not suit the method."""
    if get_method(experiment.method).kind.joint and any(item.settings != StageSettings() for item in experiment.stream):
        raise ConfigError(
            f"stream: {experiment.method} learns all tasks in one stage, so an item of its stream can have no settings "
            "of its own. Set them for the whole experiment."
        )
    if experiment.peers.on_peer_loss == "continue" and get_method(experiment.method).kind.independent:
        raise ConfigError(
            f"peers.on_peer_loss: with continue, the task of a lost model would be missing, but {experiment.method} "
            "needs all tasks. Set peers.on_peer_loss: restart."
        )
    if get_method(experiment.method).kind.independent and num_students(experiment) > 1:
        raise ConfigError(
            f"peers.count: {experiment.method} trains one model per task, as many in parallel as the cluster has room "
            f"for; expected 1 student, not {num_students(experiment)}. For further models, use other seeds."
        )
    if get_method(experiment.method).taught_by_itself and num_students(experiment) > 1:
        raise ConfigError(
            f"peers.count: with {experiment.method} a student learns from its own earlier state; expected 1 student, "
            f"not {num_students(experiment)}. For further students, use other seeds."
        )
    _refuse_batches(experiment)
    if get_method(experiment.method).has_peer_teachers:
        _refuse_without_peers(experiment)
    if experiment.replay.generator == "own" and num_students(experiment) > 1:
        if experiment.distillation.examples == "all":
            raise ConfigError(
                "replay.generator: own and distillation.examples: all exclude each other: students can only compare "
                "predictions on examples that all of them have. Share the replay (generator: first or pool)."
            )
        if experiment.training.batch_budget is not None:
            raise ConfigError(
                "replay.generator: own and training.batch_budget exclude each other: batches would differ between "
                "the students. Remove the budget, or share the replay (generator: first or pool)."
            )


def _refuse_batches(experiment: ExperimentConfig) -> None:
    """Raise ConfigError if students cannot have batches, examples or answers of their own as asked."""
    distillation, method = experiment.distillation, get_method(experiment.method)
    own = distillation.batches == "own" or distillation.schedule == "alternate_epochs"
    if experiment.peers.subset < 1 and not own:
        raise ConfigError(
            f"peers.subset: {experiment.peers.subset:g} gives every student examples of its own, so that the students "
            "have no batch in common. Set distillation.batches: own."
        )
    if distillation.batches == "own" and experiment.training.batch_budget is not None:
        raise ConfigError(
            "distillation.batches: own and training.batch_budget exclude each other: the students would not have the "
            "same number of steps. Remove the budget."
        )
    if distillation.on_policy and (method.topology == "isolated" or distillation.schedule != "simultaneous"):
        why = "here they learn in turn" if method.topology != "isolated" else f"{method.name} has no teachers"
        raise ConfigError(
            f"distillation.on_policy: students answer for their teachers to predict, but {why}. Leave the key out, or "
            "choose a method with teachers (l4-onpolicy) and distillation.schedule: simultaneous."
        )


def _refuse_without_peers(experiment: ExperimentConfig) -> None:
    """Raise ConfigError unless the settings name the students of a finished run that teach one student."""
    named = experiment.teachers.students
    if experiment.teachers.run is None or len(set(named)) != len(named) or len(named) < 2:
        raise ConfigError(
            f"teachers: {experiment.method} needs a finished run (teachers.run) and at least two different students of "
            "it (teachers.students). ray-l4 fuse RUN_DIR sets both."
        )
    if num_students(experiment) > 1:
        raise ConfigError(
            f"peers.count: {experiment.method} makes one student of several peers; expected 1, not "
            f"{num_students(experiment)}. For further students, use other seeds."
        )
