"""What an experiment and its method come to together: students, graph, stages, and values that the method sets."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.methods.copying import changed
from ray_l4.methods.edges_file import read_edges
from ray_l4.methods.peers import completed, num_students
from ray_l4.methods.table import METHODS, get_method
from ray_l4.methods.topology import TOPOLOGIES, Topology, from_edges
from ray_l4.seeds import derive


def graph_of(experiment: ExperimentConfig) -> Topology:
    """Who learns from whom in an experiment: as it says itself (``peers.topology``), else as its method has it.

    Raises ConfigError for an unknown method, one whose graph is not the user's to choose, a file that cannot be read,
    or an edge that cannot be.
    """
    method, asked, count = get_method(experiment.method), experiment.peers.topology, num_students(experiment)
    if asked is None:
        return method.graph(count)
    if method.topology != "complete":
        mutual = ", ".join(name for name, row in METHODS.items() if row.topology == "complete")
        raise ConfigError(
            f"peers.topology: {method.name} has a graph of its own ({method.topology}); only students that teach each "
            f"other can be given another one. Leave the key out, or choose one of these methods: {mutual}."
        )
    if isinstance(asked, str):
        return TOPOLOGIES[asked](count)
    if isinstance(asked, Path):
        file = read_edges(asked)
        return from_edges(count, file.edges, file.where)
    return from_edges(count, asked)


def graph_name(experiment: ExperimentConfig) -> str | list[list[int]]:
    """The graph of an experiment by its name, or its edges where it has none: what reports and records keep of it.

    Raises ConfigError as ``graph_of`` does.
    """
    asked, graph = experiment.peers.topology, graph_of(experiment)
    if asked is None:
        return get_method(experiment.method).topology
    return asked if isinstance(asked, str) else [list(edge) for edge in sorted(graph.edges)]


def stage_names(experiment: ExperimentConfig) -> list[str]:
    """What is learned between two rows of the score matrix: a task each, or all at once."""
    kind = get_method(experiment.method).kind
    return [stage.name for stage in kind.stages([task.name for task in experiment.stream])]


def resolved(experiment: ExperimentConfig) -> ExperimentConfig:
    """The experiment with its method's settings where it does not set them itself.

    A setting of the method that a model from scratch is too small for (``model.max_length``) is cut to its size.
    What is in files (edges of ``peers.topology``) is read and stands in the result.
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
        experiment = changed(experiment, **{group_name: changed(group, **{name: value})})
    _refuse_contradictions(experiment)
    return _with_own_peers(experiment)


def _with_own_peers(experiment: ExperimentConfig) -> ExperimentConfig:
    """Edges in a file become a list, and every peer's model is written out: the run's config.yaml is complete."""
    name, peers = graph_name(experiment), experiment.peers
    values: dict[str, object] = {}
    if isinstance(peers.topology, Path):
        values["topology"] = name
    if peers.each:
        values["each"] = completed(experiment)
    return changed(experiment, peers=changed(peers, **values)) if values else experiment


TEACHER_METHOD = "single-qa-lm"
"""What trains a teacher: its task alone, both heads, from the start (REFERENCE.md#teachers)."""


def teacher_experiment(experiment: ExperimentConfig) -> ExperimentConfig:
    """The experiment that trains the teachers of ``experiment``: one model per task of its stream."""
    return changed(
        experiment,
        method=TEACHER_METHOD,
        variant=None,
        seed=derive(experiment.seed, "teachers"),
        peers=changed(experiment.peers, count=1, topology=None, each=[], on_peer_loss="restart"),
        training=changed(experiment.training, epochs=experiment.teachers.epochs or experiment.training.epochs),
        evaluation=changed(experiment.evaluation, when="stage"),
    )


def _refuse_contradictions(experiment: ExperimentConfig) -> None:
    if experiment.peers.on_peer_loss == "continue" and get_method(experiment.method).kind.independent:
        raise ConfigError(
            f"peers.on_peer_loss: continue would leave out the task of a model that is lost, and {experiment.method} "
            "needs all of them. Set peers.on_peer_loss: restart."
        )
    if get_method(experiment.method).kind.independent and num_students(experiment) > 1:
        raise ConfigError(
            f"peers.count: {experiment.method} trains one model a task, as many at a time as there is room for; "
            f"expected 1 student, not {num_students(experiment)}. Use another seed for another model."
        )
    if get_method(experiment.method).taught_by_itself and num_students(experiment) > 1:
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
