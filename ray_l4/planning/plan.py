"""Whether a run fits, said before any weight or data set is loaded; and what would fit, if it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ray_l4.cluster.placement import describe_request
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.model import LoraConfig
from ray_l4.errors import RayL4Error
from ray_l4.methods import graph_of
from ray_l4.methods.copying import changed
from ray_l4.planning.batch_shape import batch_shape
from ray_l4.planning.devices import Device, devices_of
from ray_l4.planning.processes import Needs, Planner
from ray_l4.planning.units import size_text


@dataclass(frozen=True)
class Request:
    """What is to be planned, apart from the profile."""

    experiment: ExperimentConfig
    """With its method's settings (``methods.resolved``)."""
    device_memory: int | None = None
    """Bytes of every device; those of this machine when not given."""
    tokens: int | None = None
    """Length of every example; the worst case when not given."""
    answer: int | None = None
    """Tokens of an answer; the room that the experiment keeps for one when not given."""


@dataclass(frozen=True)
class Plan:
    """A run on one profile."""

    profile: str
    placement: str
    """What is reserved, in words."""
    needs: Needs
    devices: tuple[Device, ...]
    """Empty if it is not known where the processes would go."""
    problems: tuple[str, ...]
    """Why it does not fit; empty if it does."""

    @property
    def fits(self) -> bool:
        """Whether every process finds a place and every device holds what goes there."""
        return not self.problems


@dataclass(frozen=True)
class Advice:
    """What would fit in place of a plan that does not."""

    profiles: Mapping[str, str]
    """Name of a profile's file -> empty if it fits, else why not."""
    settings: tuple[tuple[str, ...], ...]
    """Changes (``KEY=VALUE``, to be given by ``--set``) with each of which this profile fits."""


def make_plan(request: Request, cluster: ClusterConfig, planner: Planner) -> Plan:
    """The plan of a run on ``cluster``.

    Raises ConfigError for a batch whose size only data can tell, ModelError for a model without a configuration.
    """
    experiment = request.experiment
    shape = batch_shape(experiment, cluster, request.tokens, request.answer)
    needs, peers = planner.needs(experiment, cluster, shape), graph_of(experiment).size
    problems: list[str] = []
    devices: Sequence[Device] = ()
    try:
        devices = devices_of(needs, peers, cluster, request.device_memory)
    except RayL4Error as error:
        problems.append(str(error))
    problems += [_too_small(device) for device in devices if not device.fits]
    store = cluster.ray.object_store_memory
    if store is not None and needs.object_store > store:
        problems.append(
            f"object store: {size_text(needs.object_store)} are on their way at a time, "
            f"ray.object_store_memory is {size_text(store)}"
        )
    placement = (
        "all in this process" if cluster.exchange.transport == "in_process" else describe_request(peers, cluster)
    )
    return Plan(cluster.name, placement, needs, tuple(devices), tuple(problems))


def advise(request: Request, cluster: ClusterConfig, others: Mapping[str, ClusterConfig], planner: Planner) -> Advice:
    """Which of the ``others`` (file name -> profile) fit, and which changes of settings make this profile fit."""
    profiles = {name: _objection(request, other, planner) for name, other in others.items()}
    settings = []
    for family in _changes(request.experiment, cluster):
        fitting = (changes for changes in family if not _objection_with(request, cluster, changes, planner))
        if (first := next(fitting, None)) is not None:
            settings.append(tuple(f"{key}={value}" for key, value in first.items()))
    return Advice(profiles, tuple(settings))


def _too_small(device: Device) -> str:
    assert device.there is not None
    return f"{device.name}: needs {size_text(device.needed)}, has {size_text(device.there)}"


def _objection(request: Request, cluster: ClusterConfig, planner: Planner) -> str:
    """The first reason why a run does not fit; empty if it does."""
    try:
        return next(iter(make_plan(request, cluster, planner).problems), "")
    except RayL4Error as error:
        return str(error)


_AUTO = 8
"""Stands for a batch size that follows from the data, where all that matters is which smaller ones to try."""

Changes = dict[str, Any]
"""Key, as ``--set`` names it -> its new value."""


def _changes(experiment: ExperimentConfig, cluster: ClusterConfig) -> list[list[Changes]]:
    """What saves memory without changing what a step learns from, by kind; within each the mildest first."""
    students, size = cluster.students, experiment.training.batch_size
    own = -(-(_AUTO if size == "auto" else size) // students.shards_per_student)
    at_once = min(own, students.micro_batch or own)
    pieces = sorted({examples for examples in (-(-at_once // 2), 1) if examples < at_once}, reverse=True)
    one_process, most = cluster.exchange.transport == "in_process", own * students.shards_per_student
    ranks = [n for n in (2, 4, 8) if students.shards_per_student < n <= most and not one_process]
    narrow = {"model.precision": "bfloat16"} if experiment.model.precision == "float32" else {}
    adapters = {"model.lora.rank": 8} if experiment.model.name and not experiment.model.lora else {}
    smallest = {"cluster.students.micro_batch": 1} if at_once > 1 else {}
    return [
        [{"cluster.students.micro_batch": examples} for examples in pieces],
        [{"cluster.students.shards_per_student": n, "cluster.students.sharding": "full"} for n in ranks],
        [changes for changes in (narrow, adapters, narrow | adapters, smallest | narrow | adapters) if changes],
    ]


def _objection_with(request: Request, cluster: ClusterConfig, changes: Changes, planner: Planner) -> str:
    students = {key.rpartition(".")[2]: value for key, value in changes.items() if key.startswith("cluster.")}
    model = {"precision": changes["model.precision"]} if "model.precision" in changes else {}
    model |= {"lora": LoraConfig(rank=changes["model.lora.rank"])} if "model.lora.rank" in changes else {}
    experiment = request.experiment
    try:
        if model:
            experiment = changed(experiment, model=changed(experiment.model, **model))
        if students:
            cluster = changed(cluster, students=changed(cluster.students, **students))
    except ValidationError as error:
        return str(error)
    asked = Request(experiment, request.device_memory, request.tokens, request.answer)
    return _objection(asked, cluster, planner)
