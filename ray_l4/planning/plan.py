"""The memory plan of a run: whether the run fits, before weights or data are loaded, and what would fit if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from ray_l4.planning.data_lengths import DataLengths
from ray_l4.planning.devices import Device, devices_of
from ray_l4.planning.disk import DiskNeed, disk_need, disk_problem
from ray_l4.planning.requirements import Estimator, Requirements
from ray_l4.planning.units import size_text


@dataclass(frozen=True)
class PlanRequest:
    """The run to plan, apart from its profile."""

    experiment: ExperimentConfig
    """With its method's settings (``methods.resolved``)."""
    device_memory: int | None = None
    """Bytes of every device; if None, those of this machine's devices."""
    tokens: int | None = None
    """Length of every example; if None, the worst case."""
    answer: int | None = None
    """Tokens of an answer; if None, those of the longest in the data, or ``evaluation.reserve``."""
    data: DataLengths | None = None
    """Lengths that occur in the run's data; None if they are unknown."""
    free_disk: int | None = None
    """Bytes that are free where the run directory will be; None if that is not known here."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run on one profile."""

    profile: str
    placement: str
    """The resources that the run reserves, in words."""
    requirements: Requirements
    devices: tuple[Device, ...]
    """Empty if the processes cannot be placed."""
    problems: tuple[str, ...]
    """Reasons why the run does not fit; empty if it does."""
    disk: DiskNeed
    free_disk: int | None
    """As in the request."""

    @property
    def fits(self) -> bool:
        """True if all processes can be placed and all devices have enough memory."""
        return not self.problems


@dataclass(frozen=True)
class Advice:
    """Alternatives to a plan that does not fit."""

    profiles: Mapping[str, str]
    """File name of a profile -> empty if the run fits there, else the reason why not."""
    settings: tuple[tuple[str, ...], ...]
    """Sets of changes (``KEY=VALUE`` for ``--set``), each of which makes the run fit on the profile of the plan."""


def make_plan(request: PlanRequest, cluster: ClusterConfig, estimator: Estimator) -> Plan:
    """Return the plan of the run on ``cluster``.

    Raises ConfigError for a batch size that depends on data, ModelError for a named model without a configuration.
    """
    experiment = request.experiment
    batch = batch_shape(experiment, cluster, request.tokens, request.answer, request.data)
    requirements, peers = estimator.requirements(experiment, cluster, batch), graph_of(experiment).size
    problems: list[str] = []
    devices: Sequence[Device] = ()
    try:
        devices = devices_of(requirements, peers, cluster, request.device_memory)
    except RayL4Error as error:
        problems.append(str(error))
    problems += [_too_small(device) for device in devices if not device.fits]
    store = cluster.ray.object_store_memory
    if store is not None and requirements.object_store > store:
        problems.append(
            f"object store: needs {size_text(requirements.object_store)} for the payloads and checkpoints stored at "
            f"the same time, ray.object_store_memory is {size_text(store)}"
        )
    whole = 1 if cluster.students.sharding == "full" else cluster.students.shards_per_student
    disk = disk_need(experiment, requirements.checkpoint, whole)
    problems += filter(None, [disk_problem(disk, request.free_disk, experiment.checkpoint.keep)])
    placement = "all in this process" if cluster.in_one_process else describe_request(peers, cluster)
    return Plan(cluster.name, placement, requirements, tuple(devices), tuple(problems), disk, request.free_disk)


def advise(
    request: PlanRequest, cluster: ClusterConfig, others: Mapping[str, ClusterConfig], estimator: Estimator
) -> Advice:
    """Return which of the profiles ``others`` (by file name) fit, and which changed settings make ``cluster`` fit."""
    profiles = {name: _objection(request, other, estimator) for name, other in others.items()}
    settings = []
    for kind in _memory_savings(request.experiment, cluster):
        fitting = (changes for changes in kind if not _objection_with(request, cluster, changes, estimator))
        if (first := next(fitting, None)) is not None:
            settings.append(tuple(f"{key}={str(value).lower()}" for key, value in first.items()))
    return Advice(profiles, tuple(settings))


def _too_small(device: Device) -> str:
    assert device.available is not None
    return f"{device.name}: needs {size_text(device.needed)}, has {size_text(device.available)}"


def _objection(request: PlanRequest, cluster: ClusterConfig, estimator: Estimator) -> str:
    """Return the first reason why the run does not fit; empty if it does."""
    try:
        return next(iter(make_plan(request, cluster, estimator).problems), "")
    except RayL4Error as error:
        return str(error)


_ASSUMED_BATCH_SIZE = 8
"""In place of a batch size that depends on data, to choose which smaller micro-batches to try."""

Changes = dict[str, Any]
"""Key, as ``--set`` names it -> new value."""


def _memory_savings(experiment: ExperimentConfig, cluster: ClusterConfig) -> list[list[Changes]]:
    """Return changes that save memory and leave the examples of a step as they are.

    One list per kind: micro-batches, sharding, activations computed again, precision and adapters, weights in bfloat16
    under adapters; each is ordered by how much it changes.
    """
    students, size = cluster.students, experiment.training.batch_size
    share = -(-(_ASSUMED_BATCH_SIZE if size == "auto" else size) // students.shards_per_student)
    at_once = min(share, students.micro_batch or share)
    smaller = sorted({examples for examples in (-(-at_once // 2), 1) if examples < at_once}, reverse=True)
    in_process, most = cluster.in_one_process, share * students.shards_per_student
    ranks = [n for n in (2, 4, 8) if students.shards_per_student < n <= most and not in_process]
    narrow = {"model.precision": "bfloat16"} if experiment.model.precision == "float32" else {}
    adapters = {"model.lora.rank": 8} if experiment.model.name and not experiment.model.lora else {}
    smallest = {"cluster.students.micro_batch": 1} if at_once > 1 else {}
    again = {} if experiment.model.gradient_checkpointing else {"model.gradient_checkpointing": True}
    halved = {"model.dtype": "bfloat16"} if experiment.model.name and experiment.model.dtype == "float32" else {}
    rounded = {**halved, **adapters} if halved else {}
    return [
        [{"cluster.students.micro_batch": examples} for examples in smaller],
        [{"cluster.students.shards_per_student": n, "cluster.students.sharding": "full"} for n in ranks],
        [again] if again else [],
        [changes for changes in (narrow, adapters, narrow | adapters, smallest | narrow | adapters) if changes],
        [rounded, smallest | again | rounded] if rounded else [],
    ]


def _objection_with(request: PlanRequest, cluster: ClusterConfig, changes: Changes, estimator: Estimator) -> str:
    """Return ``_objection`` after ``changes``."""
    students = {key.rpartition(".")[2]: value for key, value in changes.items() if key.startswith("cluster.")}
    same = ("precision", "dtype", "gradient_checkpointing")
    model = {key: changes[f"model.{key}"] for key in same if f"model.{key}" in changes}
    model |= {"lora": LoraConfig(rank=changes["model.lora.rank"])} if "model.lora.rank" in changes else {}
    experiment = request.experiment
    try:
        if model:
            experiment = changed(experiment, model=changed(experiment.model, **model))
        if students:
            cluster = changed(cluster, students=changed(cluster.students, **students))
    except ValidationError as error:
        return str(error)
    return _objection(replace(request, experiment=experiment), cluster, estimator)
